// Look: a picture and its reconstructions, at one place and one scale.

import { ask, changed, choose, find, hint, make, number, now, runner, same, seen, shelf, slot, things, tick, toggle } from "./base.js";
import { View, difference, image } from "./view.js";

const view = new View();
const state = { job: null, original: null, rebuilt: [], mode: "side", at: 0.5, factor: 4, signed: true, left: "original", right: 0, box: null, stop: null, again: false };
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
  vaes();
  const words = "Drop a picture, choose VAEs and press Reconstruct. What comes back stands beside it, at any zoom, with its difference and figures of the whole and of what you look at.";
  stage.append(hint("Look into a VAE", words));
  view.addEventListener("seen", measureSoon);
}

function vaes() {
  parts.ticks = shelf.vaes.map((vae, i) => {
    const more = vae.error ? "can't be loaded" : `f${vae.factor}, ${vae.channels} ch`;
    return tick(vae.label ?? vae.name, !vae.error, { name: `vae-${i}`, disabled: Boolean(vae.error) }, more);
  });
  const waits = parts.ticks.length ? null : make("p", { class: "note" }, "They are being loaded.");
  parts.choice.replaceChildren(...[make("legend", {}, "VAEs"), waits, ...parts.ticks].filter(Boolean));
  parts.run.button.disabled = !parts.ticks.length;
}

async function done(job, asked) {
  const thing = things.get(asked.picture);
  if (!thing) throw new Error("The picture was removed meanwhile; choose another.");
  const original = { thing, image: await image(seen(thing.id)) };
  const rebuilt = await Promise.all(
    job.results.map(async (result) => ({
      ...result, name: shelf.vaes[result.vae].label, image: await image(seen(result.thing.id)),
      whole: { psnr: result.figures.psnr, ssim: result.figures.ssim, equal: result.figures.psnr === null }, seen: {},
    })),
  );
  state.stop?.abort();
  Object.assign(state, { job, original, rebuilt, box: null, right: 0, left: "original" });
  build();
  if (state.again) setTimeout(parts.run.run);
  state.again = false;
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
  parts.figures = make("div", { class: "both" });
  const notes = state.original.thing.notices.map((one) => make("li", {}, one));
  const saves = state.rebuilt.flatMap((one) => [
    make("a", { href: `/api/things/${one.thing.id}/file`, download: one.thing.name }, `${one.thing.name} (${one.name})`), " · ",
    make("a", { href: `${one.panel}?download`, download: "" }, "panel"), " · ",
  ]);
  const save = make("p", { class: "note" }, "Save: ", ...saves.slice(0, -1));
  parts.stage.replaceChildren(tools, parts.panes, parts.figures, make("ul", { class: "notes" }, ...notes), save, same(state.job));
  view.fitted = true;
  mode(state.mode);
  table();
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
    const named = () => {
      const [left, right] = [state.left, state.right].map((key) => (key === "original" ? key : state.rebuilt[Number(key)].name));
      names.textContent = `${left} | ${right}`;
      view.draw();
    };
    const names = make("span");
    parts.more.append(pick(state.left, (key) => ((state.left = key), named())), "|", pick(state.right, (key) => ((state.right = key), named())));
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
    find("figcaption", pane.node).prepend(names);
    panes = [pane];
    named();
    set(state.at);
  }
  parts.panes.replaceChildren(...panes.map((pane) => pane.node));
  view.set(thing, panes);
}

// --- figures: of the whole, and of what is seen ---

let timer = 0;

function measureSoon() {
  if (!state.original || !parts.panes?.isConnected) return;
  const times = view.scale;
  find("#scale").textContent = `${Math.round(100 * times)}%`;
  const near = ["1", "2", "4", "8"].find((one) => Math.abs(Number(one) / times - 1) < 0.005);
  parts.zooms.set(view.fitted ? "fit" : (near ?? ""));
  clearTimeout(timer);
  timer = setTimeout(measure, 250);
}

// First what is soon there, then LPIPS; what is not looked at any more is not asked for.
async function measure() {
  const box = view.region();
  if (host.hidden || box[2] <= box[0] || box[3] <= box[1] || String(box) === String(state.box)) return;
  state.stop?.abort();
  const { signal } = (state.stop = new AbortController());
  const { thing } = state.original;
  const whole = [0, 0, thing.width, thing.height];
  const all = String(box) === String(whole);
  state.box = box;
  for (const one of state.rebuilt) one.seen = all ? one.whole : {};
  table();
  const wanted = [];
  const want = (net, key, place) => wanted.push(...state.rebuilt.map((one) => ({ one, net, found: one[key], place })));
  if (!all) want(null, "seen", box);
  for (const net of shelf.lpips) {
    if (!all) want(net, "seen", box);
    want(net, "whole", whole);
  }
  for (const { one, net, found, place } of wanted) {
    if (net && `lpips_${net}` in found) continue;
    const body = { original: thing.id, reconstruction: one.thing.id, vae: one.vae, box: place, net };
    const got = await ask(`/api/now/${net ? "lpips" : "region"}`, { body, signal }).catch((error) => ({ error: error.message }));
    if (signal.aborted) return;
    Object.assign(found, net && !got.error ? { [`lpips_${net}`]: got.lpips } : got);
    table();
  }
}

function table() {
  const nets = shelf.lpips;
  const { width, height } = state.original.thing;
  const box = state.box || [0, 0, width, height];
  const why = new Set();
  const decibels = (found) => (found.equal ? "∞" : number(found.psnr, 2));
  const distance = (found, net) => {
    const value = found[`lpips_${net}`];
    if (typeof value === "string") why.add(`LPIPS ${net}: ${value}`);
    return typeof value === "number" ? number(value, 4) : "–";
  };
  const figures = (kind, title, small) => {
    const heads = ["VAE", "PSNR", "SSIM", ...nets.map((net) => `LPIPS ${net}`)];
    const rows = state.rebuilt.map((one, i) => {
      const found = one[kind];
      if (found.error) why.add(found.error);
      const later = (known, words) => (known || found.error ? words : "…");
      const cells = [
        later("psnr" in found, decibels(found)), later("ssim" in found, number(found.ssim, 4)),
        ...nets.map((net) => later(`lpips_${net}` in found, distance(found, net))),
      ];
      const name = make("th", { scope: "row" }, make("span", { class: `swatch c${i % 8}` }), one.name);
      return make("tr", {}, name, ...cells.map((cell) => make("td", {}, cell)));
    });
    const head = make("tr", {}, ...heads.map((one) => make("th", { scope: "col" }, one)));
    const caption = make("caption", {}, title, make("small", {}, small));
    return make("div", { class: "scrolls", tabindex: 0 }, make("table", { class: `figures ${kind}` }, caption, make("thead", {}, head), make("tbody", {}, ...rows)));
  };
  const tables = [
    figures("whole", "Whole picture", `${width}×${height}`),
    figures("seen", "In view", `${box[2] - box[0]}×${box[3] - box[1]} at ${box[0]}, ${box[1]}`),
  ];
  if (!nets.length) why.add("LPIPS is not shown: its weights are not on this machine (`calotype evaluate` fetches them, once)");
  parts.figures.replaceChildren(...tables, ...(why.size ? [make("p", { class: "note" }, `${[...why].join("; ").replace(/\.$/, "")}.`)] : []));
}

export function shown() {
  if (state.original) view.resized();
}

// another picture was chosen by its key
export function next() {
  if (!state.original) return;
  if (parts.run.button.disabled) state.again = true;
  else parts.run.run();
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
