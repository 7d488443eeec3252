// Draw: words to pictures, and a chain of changes that one can step back in.

import { amount, changed, field, find, hint, make, now, options, runner, same, seen, shelf, slot, text, things, toggle } from "./base.js";
import { Painter } from "./paint.js";

const chain = []; // { id, words, from, job }
let at = -1;
let parts = {};

export function open(section) {
  const side = make("div", { class: "side" });
  const stage = make("div", { class: "stage" });
  section.append(side, stage);
  const prompt = field("What to draw", make("textarea", { name: "prompt", placeholder: "a red apple", maxlength: 2000 }));
  const negative = text("Negative prompt", { name: "negative", placeholder: "nothing" });
  const seed = amount("Seed", 0, { least: 0, name: "seed" });
  const steps = amount("Steps", null, { least: 1, most: 1000, name: "steps", hint: "2" });
  const guidance = amount("Guidance", null, { step: 0.5, name: "guidance", hint: "1" });
  const model = options("Model", [], { name: "model" });
  model.value = () => Number(model.input.value || 0);
  const wanted = text("Size (W×H)", { name: "size", placeholder: "the model's" });
  const mode = toggle("What", [["draw", "Draw anew"], ["redraw", "Redraw"]], show, true);
  const source = slot("Picture to redraw", { name: "source" });
  const strength = amount("Strength, 0 to 1", 0.7, { least: 0, most: 1, step: 0.05, name: "strength" });
  const feather = amount("Feather, pixels", 8, { least: 0, most: 1024, name: "feather" });
  const masked = options("Where", [["all", "all of it"], ["paint", "where I paint"], ["file", "a mask"]], { name: "where" });
  const mask = slot("Mask, white is redrawn", { name: "mask" });
  const redraw = make("fieldset", {}, source, make("div", { class: "pair" }, masked, strength), mask, feather);
  side.append(mode, redraw, prompt, negative, make("div", { class: "triple" }, seed, steps, guidance), model, wanted);
  const painter = new Painter(() => source.value(), () => "");
  parts = { stage, mode, redraw, source, masked, mask, feather, painter, prompt, seed, wanted };
  const values = async () => {
    const common = { prompt: prompt.value(), negative: negative.value(), seed: seed.value(), steps: steps.value(), guidance: guidance.value(), model: model.value() };
    if (mode.chosen === "draw") return { tab: "draw", ...common, size: wanted.value() };
    const over = { all: () => null, paint: () => painter.mask(), file: () => mask.value() };
    return { tab: "draw.redraw", ...common, picture: source.value(), strength: strength.value(), feather: feather.value(), mask: await over[masked.value()]() };
  };
  parts.run = runner("Draw", values, { host: side, done, preview });
  prompt.input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      parts.run.run();
    }
  });
  const models = () => {
    model.input.replaceChildren(...shelf.models.map((name, i) => make("option", { value: i }, name)));
    model.hidden = shelf.models.length < 2;
    wanted.hidden = mode.chosen === "redraw" || shelf.models.length < 2;
  };
  changed.addEventListener("shelf", models);
  masked.input.addEventListener("change", () => show(mode.chosen));
  source.addEventListener("chosen", () => painter.show());
  changed.addEventListener("picked", () => !section.hidden && mode.chosen === "redraw" && source.set(now.id));
  models();
  parts.strip = make("ol", { class: "strip", "aria-label": "Steps so far", hidden: true });
  parts.now = make("div", { class: "grows" });
  parts.same = make("div");
  stage.append(parts.strip, make("div", { class: "two" }, parts.now, painter.node), parts.same);
  parts.now.append(hint("Words to a picture", "The built-in model draws small pictures in seconds, and knows things, animals, food, faces and flags best. A drawing grows step by step; then change it by words, all of it or where you paint, and step back as you like."));
  show("draw");
}

function show(mode) {
  parts.redraw.hidden = mode !== "redraw";
  parts.run.button.textContent = mode === "redraw" ? "Redraw" : "Draw";
  parts.wanted.hidden = mode === "redraw" || shelf.models.length < 2;
  const paints = mode === "redraw" && parts.masked.value() === "paint";
  parts.mask.hidden = parts.masked.value() !== "file";
  parts.feather.hidden = parts.masked.value() === "all";
  parts.painter.want(paints);
}

function preview(url) {
  let box = find(".canvas-now", parts.now);
  if (!box) parts.now.replaceChildren((box = make("div", { class: "canvas-now" })));
  const image = new Image();
  image.alt = "The drawing so far";
  image.src = url;
  image.decode().then(() => box.replaceChildren(image)).catch(() => null);
}

function done(job, { picture: from }) {
  if (!from) chain.length = 0;
  else {
    const parent = chain.findIndex((one) => one.id === from);
    if (parent < 0) {
      chain.length = 0;
      if (things.has(from)) chain.push({ id: from, words: things.get(from).name, job: null });
    } else chain.length = parent + 1; // what came after the step that is changed makes way
  }
  for (const result of job.results) chain.push({ id: result.thing.id, words: result.caption, job });
  step(chain.length - 1);
  parts.mode.set("redraw");
  show("redraw");
}

function step(index) {
  at = index;
  const { id, words, job } = chain[at];
  const thing = things.get(id);
  parts.source.set(id);
  const image = make("img", { src: seen(id), alt: words, width: thing.width, height: thing.height });
  const save = make("a", { href: `/api/things/${id}/file`, download: thing.name }, `Save ${thing.name}`);
  parts.now.replaceChildren(make("div", { class: "canvas-now" }, image), make("p", { class: "note" }, `${words} · ${thing.width}×${thing.height} · `, save));
  parts.same.replaceChildren(...(job ? [same(job)] : []));
  const items = chain.map((one, i) => {
    const shot = make("img", { src: `/api/things/${one.id}/thumbnail.png`, alt: "" });
    return make("li", {}, make("button", { type: "button", "aria-pressed": String(i === at), onclick: () => step(i), title: one.words }, shot, make("span", {}, one.words)));
  });
  parts.strip.hidden = false;
  parts.strip.replaceChildren(...items);
}

export function key(event) {
  const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!move || at + move < 0 || at + move >= chain.length) return false;
  step(at + move);
  return true;
}
