// Latents: channels as pictures, changed by hand, and what they decode to.

import { amount, ask, changed, find, hint, make, number, now, options, reveal, runner, same, say, slot, text, things, toggle, vaes } from "./base.js";

const state = { shape: null, first: null, std: null, z: null, channel: 0, edits: [], view: "latents", drawing: null };
let parts = {};

export function open(section) {
  const side = make("div", { class: "side" });
  const stage = make("div", { class: "stage" });
  section.append(side, stage);
  const picture = slot("Picture", { name: "picture" });
  const second = slot("from picture", { optional: true, name: "second" });
  const vae = vaes();
  const size = text("Size (W×H), up to 1024×1024", { value: "256x256", name: "size" });
  side.append(picture, vae, size);
  const load = make("button", { type: "button", class: "strong", id: "encode", onclick: () => encode() }, "Encode");
  side.append(load);
  parts = { side, stage, picture, second, vae, size, load, tools: make("div", { class: "side-tools field", hidden: true }) };
  side.append(parts.tools);
  changed.addEventListener("now", () => now.id && things.has(now.id) && picture.set(now.id));
  stage.append(hint("What a VAE writes down", "Every channel as a picture, with its numbers. Paint on one, shift, scale, swap or noise it, or copy it from another picture, and see at once what it decodes to."));
}

// a table's length, the table, float32 latents, and what follows them
function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const facts = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const start = 4 + length + ((4 - (length % 4)) % 4);
  const count = facts.shape.reduce((a, b) => a * b, 1);
  const aligned = buffer.slice(start);
  return { facts, z: new Float32Array(aligned, 0, count), rest: aligned, used: 4 * count };
}

async function encode() {
  if (parts.load.disabled) return;
  parts.load.disabled = true;
  parts.load.textContent = "Encoding";
  find("#trouble").hidden = true;
  try {
    const body = { picture: parts.picture.value(), vae: parts.vae.value(), size: parts.size.value() };
    const { facts, z, rest, used } = unpack(await ask("/api/now/channels", { body, bytes: true }));
    await state.drawing; // of what was there before
    state.form = body; // what is edited, whatever is chosen meanwhile
    state.second = null;
    state.shape = facts.shape;
    state.first = z;
    state.z = z;
    state.std = facts.std ? new Float32Array(rest, used, z.length) : null;
    state.edits = [];
    state.view = "latents";
    state.channel = Math.min(state.channel, facts.shape[0] - 1);
    build();
    await decode();
    reveal(parts.load);
  } catch (error) {
    say(error.message);
  } finally {
    parts.load.disabled = false;
    parts.load.textContent = "Encode";
  }
}

// what the server is asked for; one second picture serves all copies
const form = () => ({ ...state.form, second: uses("copy") ? state.second : null, edits: state.edits });

// another picture was chosen by its key
export function next() {
  if (state.shape) encode();
}

// --- numbers and colours ---

function statistics(values) {
  const sorted = Float32Array.from(values).sort();
  const at = (part) => sorted[Math.min(sorted.length - 1, Math.round(part * (sorted.length - 1)))];
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  const variance = values.reduce((a, b) => a + (b - mean) ** 2, 0) / values.length;
  return { mean, std: Math.sqrt(variance), low: at(0.01), high: at(0.99), least: sorted[0], most: sorted[sorted.length - 1] };
}

const STOPS = [[38, 20, 72], [52, 84, 150], [62, 143, 147], [128, 196, 116], [244, 232, 120]];

function colour(part) {
  const x = Math.min(0.9999, Math.max(0, part)) * (STOPS.length - 1);
  const [i, t] = [Math.floor(x), x % 1];
  return STOPS[i].map((value, c) => value + t * (STOPS[i + 1][c] - value));
}

const shownValues = () => (state.view === "std" ? state.std : state.z);

function channel(index, from = shownValues()) {
  const size = state.shape[1] * state.shape[2];
  return from.subarray(index * size, (index + 1) * size);
}

function paintChannel(canvas, index) {
  const [, height, width] = state.shape;
  const values = channel(index);
  const found = statistics(values);
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const span = found.high - found.low || 1;
  values.forEach((value, i) => {
    const [r, g, b] = colour((value - found.low) / span);
    pixels.data.set([r, g, b, 255], 4 * i);
  });
  context.putImageData(pixels, 0, 0);
  return found;
}

// --- the bench ---

function build() {
  const count = state.shape[0];
  const views = toggle("Shown", [["latents", "Latents"], ["std", "Posterior std"]], (value) => {
    state.view = value;
    refresh();
  });
  for (const button of views.children) if (button.dataset.value === "std" && !state.std) button.disabled = true;
  parts.grid = make("div", { class: "channels" });
  parts.cards = Array.from({ length: count }, (_, i) => {
    const canvas = make("canvas");
    const words = make("span");
    const pick = () => {
      state.channel = i;
      parts.which.input.value = String(i);
      refresh();
    };
    const button = make("button", { type: "button", class: "channel", "aria-pressed": "false", onclick: pick, "data-channel": i }, canvas, words);
    parts.grid.append(button);
    return { canvas, words, button };
  });
  parts.paint = make("canvas", { id: "paint", "aria-label": "The chosen channel, to paint on" });
  parts.caption = make("figcaption");
  parts.scale = make("div", { class: "scale" });
  parts.histogram = make("svg", { class: "histogram", preserveAspectRatio: "none" });
  parts.ends = make("div", { class: "ends" });
  parts.decoded = make("img", { id: "decoded", alt: "What the latents decode to" });
  parts.rgb = make("img", { class: "rgb", alt: "RGB preview of the latents" });
  parts.took = make("small", { id: "took" });
  parts.list = make("ol", { class: "edits", "aria-label": "Edits" });
  const square = (one) => make("div", { class: "square" }, one);
  const left = make("figure", {}, square(parts.paint), parts.caption, make("div", { class: "side-of" }, parts.scale, parts.histogram, parts.ends));
  const beside = make("div", { class: "beside" }, parts.rgb, "the same latents as RGB, a pixel each, without a decoder");
  parts.beside = beside;
  const right = make("figure", {}, square(parts.decoded), make("figcaption", {}, "decoded", parts.took), beside);
  parts.result = make("div");
  const tools = make("div", { class: "tools" }, views, make("span", { id: "summary" }), make("button", { type: "button", class: "plain push", id: "undo", onclick: undo }, "Undo"), make("button", { type: "button", class: "plain", id: "reset", onclick: reset }, "Reset"));
  parts.stage.replaceChildren(tools, make("div", { class: "bench" }, left, right), parts.list, parts.grid, parts.result);
  painting();
  controls();
  refresh();
}

function controls() {
  const count = state.shape[0];
  const numbers = Array.from({ length: count }, (_, i) => [String(i), `channel ${i}`]);
  parts.which = options("Channel", [...numbers, ["all", "all channels"]], { name: "channel" });
  parts.which.input.value = String(state.channel);
  parts.which.input.addEventListener("change", () => {
    if (parts.which.value() !== "all") state.channel = Number(parts.which.value());
    refresh();
  });
  const target = () => (parts.which.value() === "all" ? {} : { channel: Number(parts.which.value()) });
  const row = (input, words, make_) => {
    const press = () => {
      try {
        push(make_());
      } catch (error) {
        say(error.message);
      }
    };
    return make("div", { class: "row3" }, input, make("button", { type: "button", class: "plain", "data-do": words.toLowerCase(), onclick: press }, words));
  };
  const by = (node) => {
    const value = node.value();
    if (value === null) throw new Error("Give a number first.");
    return value;
  };
  const shift = amount("add", 1, { step: 0.1, name: "shift" });
  const scale = amount("times, about its mean", 1.5, { step: 0.1, name: "scale" });
  const noise = amount("times its own std", 0.5, { step: 0.1, name: "noise" });
  const swap = options("with channel", numbers.map(([value]) => [value, value]), { name: "swap" });
  swap.input.value = String(Math.min(1, count - 1));
  parts.brush = amount("brush, latents", 3, { least: 1, most: 64, name: "brush" });
  parts.ink = amount("value painted", 2, { step: 0.5, name: "ink" });
  const copy = () => {
    const second = parts.second.value();
    if (!second) throw new Error("Choose a second picture to copy from.");
    if (uses("copy") && second !== state.second) throw new Error("Copies come from one picture; take the others back first, or make a file of this one.");
    state.second = second;
    return { do: "copy", ...target() };
  };
  const one = () => {
    if (parts.which.value() === "all") throw new Error("Choose one channel to swap.");
    return target();
  };
  parts.tools.hidden = false;
  parts.tools.replaceChildren(
    parts.which,
    row(shift, "Shift", () => ({ do: "shift", ...target(), by: by(shift) })),
    row(scale, "Scale", () => ({ do: "scale", ...target(), by: by(scale) })),
    row(noise, "Noise", () => ({ do: "noise", ...target(), by: by(noise), seed: state.edits.length })),
    row(swap, "Swap", () => ({ do: "swap", ...one(), with: Number(swap.value()) })),
    row(parts.second, "Copy", copy),
    make("div", { class: "pair" }, parts.ink, parts.brush),
    make("small", {}, "Paint on the large channel."),
  );
  const job = () => ({ tab: "latents", ...form() });
  parts.tools.append((parts.runs = make("div", { class: "field" })));
  runner("Make a file of it", job, { host: parts.runs, done: (end) => parts.result.replaceChildren(saved(end), same(end)) });
}

const uses = (what) => state.edits.some((edit) => edit.do === what);

function saved(job) {
  const [picture, list] = job.results;
  const link = make("a", { href: `/api/things/${picture.thing.id}/file`, download: picture.thing.name }, picture.thing.name);
  return make("p", { class: "note" }, "Save: ", link, " · ", make("a", { href: `${list.url}?download`, download: list.file }, list.file));
}

function refresh() {
  if (!state.shape) return;
  const [count, height, width] = state.shape;
  parts.cards.forEach((card, i) => {
    const found = paintChannel(card.canvas, i);
    card.button.setAttribute("aria-pressed", String(i === state.channel));
    const range = make("span", { class: "more" }, `${number(found.low, 2)} to ${number(found.high, 2)}`);
    card.words.replaceChildren(make("b", {}, String(i)), ` ${number(found.mean, 2)} ± ${number(found.std, 2)}`, range);
    card.button.title = `channel ${i}: mean ${number(found.mean, 3)}, std ${number(found.std, 3)}, 1% ${number(found.low, 3)}, 99% ${number(found.high, 3)}, ${number(found.least, 3)} to ${number(found.most, 3)}`;
  });
  const name = things.get(state.form.picture)?.name ?? "a picture that was removed";
  find("#summary").textContent = `${name}: ${count} channels of ${width}×${height}${state.view === "std" ? ", posterior std" : ""}; colours go from 1% to 99% of each`;
  const found = paintChannel(parts.paint, state.channel);
  parts.caption.replaceChildren(`channel ${state.channel}`, make("small", {}, `mean ${number(found.mean, 3)} · std ${number(found.std, 3)}`));
  const bar = make("canvas", { width: 256, height: 1 });
  const context = bar.getContext("2d");
  for (let x = 0; x < 256; x += 1) {
    context.fillStyle = `rgb(${colour(x / 255).map(Math.round).join(",")})`;
    context.fillRect(x, 0, 1, 1);
  }
  parts.scale.replaceChildren(`${number(found.low, 2)} (1%)`, bar, `${number(found.high, 2)} (99%)`);
  histogram(found);
  parts.list.replaceChildren(...state.edits.map((edit, i) => make("li", {}, words(edit), make("button", { type: "button", "aria-label": `Remove ${words(edit)}`, onclick: () => remove(i) }, "✕"))));
  find("#undo").disabled = find("#reset").disabled = !state.edits.length;
}

function histogram(found) {
  const bins = new Array(64).fill(0);
  const span = found.most - found.least || 1;
  for (const value of channel(state.channel)) bins[Math.min(63, Math.floor((64 * (value - found.least)) / span))] += 1;
  const most = Math.max(...bins);
  parts.histogram.setAttribute("viewBox", "0 0 640 52");
  parts.histogram.replaceChildren(
    ...bins.map((count, i) => make("rect", { class: "bar", x: 10 * i + 1, width: 8, y: 52 - (50 * count) / most, height: (50 * count) / most })),
  );
  parts.ends.replaceChildren(make("span", {}, number(found.least, 2)), make("span", {}, number(found.most, 2)));
}

function words(edit) {
  const which = edit.channel === undefined ? "all" : `${edit.channel}`;
  if (edit.do === "set") return `paint ${which}: ${edit.value}, ${edit.cells.length} latents`;
  if (edit.do === "swap") return `swap ${which} and ${edit.with}`;
  if (edit.do === "copy") return `copy ${which}`;
  return `${edit.do} ${which} ${edit.do === "scale" ? "×" : "by "}${edit.by}`;
}

function push(edit) {
  state.edits.push(edit);
  state.view = "latents";
  return decode();
}

function undo() {
  state.edits.pop();
  return decode();
}

function reset() {
  state.edits = [];
  return decode();
}

function remove(index) {
  state.edits.splice(index, 1);
  return decode();
}

// One at a time; what changed meanwhile is decoded after it.
async function decode() {
  if (state.drawing) {
    state.again = true;
    return state.drawing;
  }
  state.drawing = (async () => {
    do {
      state.again = false;
      const begin = performance.now();
      try {
        const { facts, z, rest, used } = unpack(await ask("/api/now/decoded", { body: form(), bytes: true }));
        state.z = z;
        const blob = (from, length) => new Blob([new Uint8Array(rest, from, length)], { type: "image/png" });
        await put(parts.decoded, blob(used, facts.picture));
        if (facts.rgb) await put(parts.rgb, blob(used + facts.picture, facts.rgb));
        parts.beside.hidden = !facts.rgb;
        const time = (performance.now() - begin) / 1000;
        parts.took.textContent = `${number(time, 2)} s`;
        parts.took.dataset.seconds = time;
        parts.took.dataset.edits = state.edits.length;
      } catch (error) {
        say(error.message);
        state.edits.pop();
      }
      refresh();
    } while (state.again);
  })();
  try {
    await state.drawing;
  } finally {
    state.drawing = null;
  }
}

async function put(image, blob) {
  const before = image.src;
  image.src = URL.createObjectURL(blob);
  await image.decode();
  if (before.startsWith("blob:")) URL.revokeObjectURL(before);
}

function painting() {
  let stroke = null;
  const canvas = parts.paint;
  const mark = (event) => {
    const box = canvas.getBoundingClientRect();
    const [, height, width] = state.shape;
    const [toX, toY] = [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
    const [fromX, fromY] = stroke.last ?? [toX, toY];
    stroke.last = [toX, toY];
    const steps = Math.ceil(2 * Math.hypot(toX - fromX, toY - fromY)) || 1;
    for (let k = 1; k <= steps; k += 1) dab(fromX + ((toX - fromX) * k) / steps, fromY + ((toY - fromY) * k) / steps);
    const context = canvas.getContext("2d");
    context.fillStyle = "#f36";
    for (const cell of stroke.cells) context.fillRect(cell % width, Math.floor(cell / width), 1, 1);
  };
  const dab = (x, y) => {
    const [, height, width] = state.shape;
    const reach = (parts.brush.value() ?? 1) / 2;
    for (let j = Math.max(0, Math.floor(y - reach)); j <= Math.min(height - 1, y + reach); j += 1) {
      for (let i = Math.max(0, Math.floor(x - reach)); i <= Math.min(width - 1, x + reach); i += 1) {
        if (Math.hypot(i + 0.5 - x, j + 0.5 - y) <= Math.max(reach, 0.71)) stroke.cells.add(j * width + i);
      }
    }
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    stroke = { cells: new Set() };
    mark(event);
  });
  canvas.addEventListener("pointermove", (event) => stroke && mark(event));
  const end = () => {
    if (!stroke) return;
    const width = state.shape[2];
    const cells = [...stroke.cells].map((cell) => [cell % width, Math.floor(cell / width)]);
    stroke = null;
    if (cells.length) push({ do: "set", channel: state.channel, value: parts.ink.value() ?? 0, cells });
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
}
