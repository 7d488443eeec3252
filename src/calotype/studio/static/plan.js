// Plan: what sizes take, in memory and time.

import { ask, hint, make, number, options, runner, same, text, vaes } from "./base.js";

let parts = {};

export function open(section) {
  const side = make("div", { class: "side" });
  const stage = make("div", { class: "stage" });
  section.append(side, stage);
  const vae = vaes();
  const direction = options("Direction", [["decode", "decode"], ["encode", "encode"]], { name: "direction" });
  const size = text("Size (W×H)", { placeholder: "256 to 8192", name: "size" });
  const memory = text("Memory", { placeholder: "what is free, e.g. 1GB", name: "memory" });
  side.append(vae, direction, size, memory);
  parts = { stage };
  const form = () => ({ tab: "plan", vae: vae.value(), direction: direction.value(), size: size.value(), memory: memory.value() });
  runner("Plan", form, { done, host: side });
  stage.append(hint("What fits, and how long it takes", "Memory, work and time of every size, for this VAE on this machine. Nothing is cut into tiles: the same picture in less memory takes longer, and some sizes do not fit in little. Both are said beforehand."));
}

const bytes = (count) => (count >= 1e9 ? `${number(count / 1e9, 2)} GB` : `${number(count / 1e6, 0)} MB`);

function seconds(value) {
  if (value < 10) return `${number(value, 1)} s`;
  if (value < 90) return `${number(value, 0)} s`;
  return value < 5400 ? `${number(value / 60, 0)} min` : `${number(value / 3600, 1)} h`;
}

async function done(job, { vae, direction }) {
  show(job, null);
  const body = { vae, direction };
  try {
    show(job, await ask("/api/now/pace", { body }));
  } catch (error) {
    show(job, null, error.message);
  }
}

function show(job, pace, why = "") {
  const most = Math.max(...job.results.map((row) => row.peak_bytes ?? 0), 1);
  const commands = make("div", {});
  const rows = job.results.map((row) => {
    const head = make("th", { scope: "row" }, row.size.replace("x", "×"));
    const node = make("tr", { tabindex: 0 }, head);
    if (row.error) node.append(make("td", { class: "refused", colspan: 5 }, row.error));
    else {
      const svg = make("svg", { class: "share", viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" });
      svg.append(make("rect", { class: "track", width: 100, height: 4 }), make("rect", { class: "bar", width: (100 * row.peak_bytes) / most, height: 4 }));
      const time = pace ? `≈ ${seconds(row.flops / pace.flops_per_second)}` : why ? "–" : "…";
      const share = row.attention_flops / Math.max(row.flops, 1);
      const spilled = row.spilled_bytes ? bytes(row.spilled_bytes) : "nothing";
      node.append(
        make("td", {}, bytes(row.peak_bytes), svg), make("td", {}, time), make("td", { class: "wide" }, `${number(row.flops / 1e12, 3)} TFLOP`),
        make("td", { class: "wide" }, `${number(100 * share, 0)}%`), make("td", { class: "wide" }, spilled),
      );
    }
    const pick = () => {
      for (const other of rows) other.classList.toggle("chosen", other === node);
      const notices = (row.notices ?? []).map((one) => make("li", {}, one));
      const [width, height] = row.size.split("x");
      const python = job.python.replace(/(plan\("\w+", |plan\('\w+', )\d+, \d+/, `$1${height}, ${width}`);
      commands.replaceChildren(make("ul", { class: "notes" }, ...notices), same({ ...job, command: row.command, python }));
    };
    node.addEventListener("click", pick);
    node.addEventListener("keydown", (event) => event.key === "Enter" && pick());
    node.pick = pick;
    return node;
  });
  const heads = [["size"], ["peak memory", "beside weights and picture"], ["time", "estimated"], ["work", null, "wide"], ["attention", "of the work", "wide"], ["spilled", "to a temporary file", "wide"]];
  const head = make("tr", {}, ...heads.map(([one, small, cls]) => make("th", { scope: "col", class: cls }, one, small ? make("small", {}, small) : null)));
  const basis = pace ? `Times are estimated from ${pace.side}×${pace.side} pixels, which just took ${number(pace.seconds, 2)} s here; they hold while nothing else keeps the machine busy.` : why;
  parts.stage.replaceChildren(
    make("div", { class: "scrolls" }, make("table", { class: "plans" }, make("thead", {}, head), make("tbody", {}, ...rows))),
    make("p", { class: "note" }, basis),
    commands,
  );
  rows[rows.length - 1].pick();
}
