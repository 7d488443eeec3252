// Look: a picture and its reconstructions, at one place and one scale.

import { ask, changed, choose, find, hint, make, number, now, runner, same, seen, shelf, slot, things, tick, toggle } from "./base.js";
import { View, difference, image } from "./view.js";

const view = new View();
const state = { job: null, original: null, rebuilt: [], mode: "side", at: 0.5, factor: 4, signed: true, left: "original", right: 0, figures: {} };
let host = null;
let parts = {};

export function open(section) {
  host = section;
  const side = make("div", { class: "side" });
  const stage = make("div", { class: "stage" });
  section.append(side, stage);
  const picture = slot("Picture", { name: "picture" });
  const choice = make("fieldset", {}, make("legend", {}, "VAEs"));
  find("select", picture).addEventListener("change", () => choose(picture.value()));
  side.append(picture, choice);
  parts = { picture, choice, stage, ticks: [] };
  changed.addEventListener("shelf", vaes);
  changed.addEventListener("now", () => now.id && things.has(now.id) && picture.set(now.id));
  parts.run = runner(
    "Reconstruct",
    () => ({ tab: "look", picture: picture.value(), vaes: parts.ticks.map((one, i) => (one.value() ? i : -1)).filter((i) => i >= 0) }),
    { done, host: side },
  );
  const words = "Drop a picture, choose VAEs and press Reconstruct. What comes back stands beside it, at any zoom, with its difference and figures of the whole and of what you look at.";
  stage.append(hint("Look into a VAE", words));
  view.addEventListener("seen", measureSoon);
}

function vaes() {
  parts.ticks = shelf.vaes.map((vae, i) => {
    const more = vae.error ? "can't be loaded" : `f${vae.factor}, ${vae.channels} ch`;
    return tick(vae.label ?? vae.name, !vae.error, { name: `vae-${i}`, disabled: Boolean(vae.error) }, more);
  });
  parts.choice.replaceChildren(make("legend", {}, "VAEs"), ...parts.ticks);
}

async function done(job) {
  const original = things.get(parts.picture.value());
  state.job = job;
  state.original = { thing: original, image: await image(seen(original.id)) };
  state.rebuilt = await Promise.all(
    job.results.map(async (result) => ({ ...result, name: shelf.vaes[result.vae].label, image: await image(seen(result.thing.id)) })),
  );
  state.figures = {};
  state.right = 0;
  state.left = "original";
  build();
}

function build() {
  const modes = toggle("How to compare", [["side", "Side by side"], ["slider", "Slider"], ["difference", "Difference"]], mode);
  modes.set(state.mode);
  const zooms = toggle("Zoom", [["fit", "Fit"], ["1", "1:1"], ["2", "×2"], ["4", "×4"], ["8", "×8"]], (value) => (value === "fit" ? view.fit() : view.to(Number(value))));
  const scale = make("span", { id: "scale" });
  const tools = make("div", { class: "tools" }, modes, zooms, scale, (parts.more = make("span", { class: "tools more" })));
  parts.modes = modes;
  parts.zooms = zooms;
  parts.panes = make("div", { class: "panes grows" });
  parts.figures = make("div", { class: "scrolls", tabindex: 0 });
  const notes = state.original.thing.notices.map((one) => make("li", {}, one));
  const saves = state.rebuilt.flatMap((one) => [
    make("a", { href: `/api/things/${one.thing.id}/file`, download: one.thing.name }, `${one.thing.name} (${one.name})`), " · ",
    make("a", { href: `${one.panel}?download`, download: "" }, "panel"), " · ",
  ]);
  const save = make("p", { class: "note" }, "Save: ", ...saves.slice(0, -1));
  parts.stage.replaceChildren(tools, parts.panes, parts.figures, make("ul", { class: "notes" }, ...notes), save, same(state.job));
  view.fitted = true;
  mode(state.mode);
  whole();
}

const draws = (picture) => (context) => context.drawImage(picture, 0, 0);

function mode(value) {
  state.mode = value;
  const { thing, image: before } = state.original;
  const size = `${thing.width}×${thing.height}`;
  let panes = [];
  const pick = (chosen, onchange) => {
    const names = [["original", "original"], ...state.rebuilt.map((one, i) => [String(i), one.name])];
    const select = make("select", { "aria-label": "Picture", onchange: (event) => onchange(event.target.value) }, ...names.map(([key, name]) => make("option", { value: key, selected: key === String(chosen) }, name)));
    return select;
  };
  parts.more.replaceChildren();
  if (value === "side") {
    panes = [view.pane("original", draws(before), size)];
    for (const one of state.rebuilt) panes.push(view.pane(one.name, draws(one.image), `${number(one.figures.psnr, 2)} dB`));
  } else if (value === "difference") {
    const says = make("output", {}, `×${state.factor}`);
    const slide = (event) => {
      state.factor = Number(event.target.value);
      says.textContent = `×${state.factor}`;
      view.draw();
    };
    const factor = make("input", { type: "range", id: "factor", min: 1, max: 32, value: state.factor, "aria-label": "Amplified", oninput: slide });
    const kinds = toggle("Difference", [["signed", "signed"], ["absolute", "absolute"]], (kind) => {
      state.signed = kind === "signed";
      view.draw();
    });
    kinds.set(state.signed ? "signed" : "absolute");
    parts.more.append(make("label", {}, "amplified", factor, says), kinds);
    for (const one of state.rebuilt) {
      const paint = (context) => difference(context, view, before, one.image, state.factor, state.signed);
      panes.push(view.pane(`${one.name} − original`, paint, `${number(one.figures.psnr, 2)} dB`));
    }
  } else {
    const of = (key) => (key === "original" ? before : state.rebuilt[Number(key)].image);
    parts.more.append(
      pick(state.left, (key) => ((state.left = key), view.draw())), "|",
      pick(state.right, (key) => ((state.right = key), view.draw())),
    );
    const paint = (context) => {
      const { width, height } = context.canvas;
      const edge = Math.round(state.at * width);
      const one = (picture, left, right) => {
        context.save();
        const place = context.getTransform();
        context.setTransform(1, 0, 0, 1, 0, 0);
        context.beginPath();
        context.rect(left, 0, right - left, height);
        context.clip();
        context.setTransform(place);
        context.drawImage(picture, 0, 0);
        context.restore();
      };
      one(of(state.left), 0, edge);
      one(of(state.right), edge, width);
      divider.style.left = `${100 * state.at}%`;
    };
    const pane = view.pane("", paint, size);
    const divider = make("button", { type: "button", class: "divider", role: "slider", "aria-label": "Where one picture ends", "aria-valuemin": 0, "aria-valuemax": 100 });
    const set = (at) => {
      state.at = Math.min(1, Math.max(0, at));
      divider.setAttribute("aria-valuenow", Math.round(100 * state.at));
      view.draw();
    };
    divider.addEventListener("pointerdown", (event) => divider.setPointerCapture(event.pointerId));
    divider.addEventListener("pointermove", (event) => {
      if (!divider.hasPointerCapture(event.pointerId)) return;
      const box = pane.box.getBoundingClientRect();
      set((event.clientX - box.left) / box.width);
    });
    divider.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.key];
      if (step) {
        set(state.at + step);
        event.stopPropagation();
      }
    });
    pane.box.append(divider);
    find("figcaption", pane.node).prepend("left | right");
    panes = [pane];
    set(state.at);
  }
  parts.panes.replaceChildren(...panes.map((pane) => pane.node));
  view.set(thing, panes);
}

// --- figures: of the whole, and of what is seen ---

let timer = 0;
let asked = 0;

function measureSoon() {
  if (!state.original || !parts.panes?.isConnected) return;
  const times = view.scale;
  find("#scale").textContent = `${times >= 1 ? "" : ""}${Math.round(100 * times)}%`;
  const near = ["1", "2", "4", "8"].find((one) => Math.abs(Number(one) / times - 1) < 0.005);
  parts.zooms.set(view.fitted ? "fit" : (near ?? ""));
  clearTimeout(timer);
  timer = setTimeout(region, 250);
}

async function figuresOf(one, box) {
  return ask("/api/now/region", { body: { original: state.original.thing.id, reconstruction: one.thing.id, vae: one.vae, box } });
}

async function whole() {
  table();
  const { width, height } = state.original.thing;
  if (!shelf.lpips.length || width * height > 2 ** 21) return;
  for (const [i, one] of state.rebuilt.entries()) {
    state.figures[`whole-${i}`] = await figuresOf(one, [0, 0, width, height]).catch(() => null);
    table();
  }
}

async function region() {
  const box = view.region();
  if (!state.original || host.hidden || box[2] <= box[0] || box[3] <= box[1]) return;
  const known = String(box) === String(state.box) && state.rebuilt.every((_, i) => state.figures[`seen-${i}`]);
  if (known) return;
  const mine = (asked += 1);
  state.box = box;
  for (const [i, one] of state.rebuilt.entries()) {
    const found = await figuresOf(one, box).catch((error) => ({ error: error.message }));
    if (mine !== asked) return;
    state.figures[`seen-${i}`] = found;
    table();
  }
}

function table() {
  const nets = shelf.lpips;
  const { width, height } = state.original.thing;
  const box = state.box || [0, 0, width, height];
  const heads = ["PSNR", "SSIM", ...nets.map((net) => `LPIPS ${net}`)];
  const group = (words, small) => make("th", { colspan: heads.length, scope: "colgroup" }, words, make("small", {}, small));
  const first = make("tr", {}, make("th", { scope: "col" }, "VAE"), group("whole picture", `${width}×${height}`), group("in view", `${box[2] - box[0]}×${box[3] - box[1]} at ${box[0]}, ${box[1]}`), make("th", { scope: "col" }, "a pixel"));
  const second = make("tr", {}, make("th"), ...[...heads, ...heads].map((one) => make("th", { scope: "col" }, one)), make("th"));
  const db = (found) => (found?.equal ? "∞" : number(found?.psnr, 2));
  const lpips = (found, net) => (typeof found?.lpips?.[net] === "number" ? number(found.lpips[net], 4) : (found?.lpips?.[net] ?? "–"));
  const rows = state.rebuilt.map((one, i) => {
    const [all, part] = [state.figures[`whole-${i}`], state.figures[`seen-${i}`]];
    const cells = [
      number(one.figures.psnr ?? Infinity, 2), number(one.figures.ssim, 4), ...nets.map((net) => lpips(all, net)),
      db(part), number(part?.ssim, 4), ...nets.map((net) => lpips(part, net)),
      `${number(one.figures.numbers_per_pixel, 3)} numbers`,
    ];
    const name = make("th", { scope: "row" }, make("span", { class: `swatch c${i % 8}` }), one.name);
    return make("tr", {}, name, ...cells.map((cell) => make("td", {}, cell)));
  });
  const missing = nets.length ? null : make("p", { class: "note" }, "LPIPS is not shown: its weights are not on this machine (`calotype evaluate` fetches them, once).");
  parts.figures.replaceChildren(make("table", { class: "figures" }, make("thead", {}, first, second), make("tbody", {}, ...rows)), ...(missing ? [missing] : []));
}

export function shown() {
  if (state.original) view.resized();
}

// another picture was chosen by its key
export function next() {
  if (state.original) parts.run.run();
}

export function key(event) {
  if (!state.original) return false;
  const wanted = { s: "slider", b: "side", d: "difference" }[event.key];
  if (wanted) {
    parts.modes.set(wanted);
    mode(wanted);
    return true;
  }
  return view.key(event);
}
