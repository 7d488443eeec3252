// Edit: morph, vary, blend, transfer, directions.

import { add, amount, card, changed, field, find, hint, make, now, number, options, runner, same, say, shelf, short, size, slot, tick, toggle, vaes } from "./base.js";
import { Painter } from "./paint.js";

const kinds = { morph, vary, blend, transfer, directions };
const built = {};
let parts = {};

export function open(section) {
  const side = make("div", { class: "side" });
  const stage = make("div", { class: "stage" });
  section.append(side, stage);
  const words = [["morph", "Morph"], ["vary", "Vary"], ["blend", "Blend"], ["transfer", "Transfer"], ["directions", "Direction"]];
  const pick = toggle("Edit", words, show, true);
  parts = { side, stage, pick, forms: make("div") };
  side.append(pick, parts.forms);
  show("morph");
  // a picture that is picked above takes the first place
  changed.addEventListener("picked", () => !section.hidden && find(".slot", parts.forms).set(now.id));
}

function show(kind) {
  if (!built[kind]) {
    const form = make("div", { class: "side-form" });
    const result = make("div", { class: "stage-part" });
    built[kind] = { form, result };
    kinds[kind](form, result);
  }
  parts.forms.replaceChildren(built[kind].form);
  const { before, result } = built[kind];
  parts.stage.replaceChildren(before ? make("div", { class: "two" }, before, result) : result);
}

const results = (result, large = false) => (job) => {
  const cards = job.results.filter((one) => one.kind !== "sheet").map((one) => card(one, one.caption ?? one.file));
  const sheets = job.results.filter((one) => one.kind === "sheet").map((one) => make("p", { class: "note" }, "Save: ", make("a", { href: `${one.url}?download`, download: one.file }, `${one.file} (all of them)`)));
  result.replaceChildren(make("div", { class: large ? "shots large" : "shots" }, ...cards), ...sheets, same(job));
};

function morph(form, result) {
  const chosen = [slot("From", { name: "from" }), slot("To", { index: 1, name: "to" }), slot("And then", { optional: true, name: "then" })];
  const [frames, fps] = [amount("Frames between two", 16, { least: 2, most: 240, name: "frames" }), amount("Frames a second", 12, { least: 0.5, most: 60, step: 0.5, name: "fps" })];
  const way = options("Way", [["slerp", "around the origin (slerp)"], ["lerp", "straight (lerp)"]], { name: "way" });
  const easing = options("Easing", ["linear", "cosine", "smoothstep", "in", "out"], { name: "easing" });
  const end = options("At its end", [["ping-pong", "there and back"], ["closed", "on to the first"], ["once", "from the start"]], { name: "end" });
  const format = options("Format", [["webp", "WebP"], ["gif", "GIF"], ["png", "APNG"]], { name: "format" });
  const [wanted, vae] = [size("256x256"), vaes()];
  form.append(...chosen, make("div", { class: "pair" }, frames, fps), way, make("div", { class: "pair" }, easing, end), make("div", { class: "pair" }, wanted, format), vae);
  const values = () => ({
    tab: "edit.morph", pictures: chosen.map((one) => one.value()).filter(Boolean), frames: frames.value(), fps: fps.value(),
    way: way.value(), easing: easing.value(), end: end.value(), format: format.value(), size: wanted.value(), vae: vae.value(),
  });
  runner("Morph", values, { host: form, done: results(result, true) });
  result.append(hint("One picture turns into the next", "Frames at the pictures are what a round trip makes of them; those between lie between their latents."));
}

function vary(form, result) {
  const picture = slot("Picture", { name: "picture" });
  const [count, seed] = [amount("How many", 6, { least: 1, most: 24, name: "count" }), amount("First seed", 0, { least: 0, name: "seed" })];
  const temperature = amount("Temperature", 0.3, { least: 0, step: 0.1, name: "temperature" });
  const noise = options("Unit of the noise", [["latents", "latents' std"], ["posterior", "posterior's std"]], { name: "noise" });
  const [wanted, vae] = [size("256x256"), vaes()];
  form.append(picture, make("div", { class: "pair" }, count, seed), make("div", { class: "pair" }, temperature, noise), wanted, vae);
  const values = () => ({
    tab: "edit.vary", picture: picture.value(), count: count.value(), seed: seed.value(), temperature: temperature.value(),
    noise: noise.value(), size: wanted.value(), vae: vae.value(),
  });
  runner("Vary", values, { host: form, done: results(result) });
  result.append(hint("Draws around a picture's own latents", "A posterior's own std is mostly too narrow to be seen; the std of the latents is the same unit for every VAE."));
}

function blend(form, result) {
  const [first, second] = [slot("Stays where the mask is black", { name: "first" }), slot("Comes in where it is white", { index: 1, name: "second" })];
  const source = options("Mask", [["paint", "painted here"], ["file", "a picture"]], { name: "mask-from" });
  const mask = slot("Mask", { name: "mask" });
  const feather = amount("Feather, pixels", 24, { least: 0, most: 1024, name: "feather" });
  const decoded = tick("Leave all as decoded", false, { name: "decoded" });
  const [wanted, vae] = [size("256x256"), vaes()];
  form.append(first, second, source, mask, make("div", { class: "pair" }, feather, wanted), decoded, vae);
  const painter = new Painter(() => first.value(), () => wanted.value());
  built.blend.before = painter.node;
  const sources = () => {
    mask.hidden = source.value() === "paint";
    painter.want(source.value() === "paint");
  };
  for (const node of [source.input, wanted.input]) node.addEventListener("change", sources);
  first.addEventListener("chosen", sources);
  sources();
  const values = async () => ({
    tab: "edit.blend", first: first.value(), second: second.value(), mask: source.value() === "paint" ? await painter.mask() : mask.value(),
    feather: feather.value(), decoded: decoded.value(), size: wanted.value(), vae: vae.value(),
  });
  runner("Blend", values, { host: form, done: results(result, true) });
  result.append(hint("Two pictures in one", "Paint on the first picture where the second comes in. Beyond the feather not one pixel changes."));
}

function transfer(form, result) {
  const [content, style] = [slot("Picture", { name: "content" }), slot("Whose colours and contrast", { index: 1, name: "style" })];
  const [strength, wanted] = [amount("Strength", 1, { least: -10, most: 10, step: 0.1, name: "strength" }), size("256x256")];
  const vae = vaes();
  form.append(content, style, make("div", { class: "pair" }, strength, wanted), vae);
  const values = () => ({ tab: "edit.transfer", content: content.value(), style: style.value(), strength: strength.value(), size: wanted.value(), vae: vae.value() });
  runner("Transfer", values, { host: form, done: results(result, true) });
  result.append(hint("One picture's tone for another", "Each latent channel gets the mean and std that it has in the other picture."));
}

function directions(form, result) {
  const [start, end] = [options("From the pictures in", [], { name: "start" }), options("To those in", [], { name: "end" })];
  const aligned = tick("Aligned: at one place in all pictures", false, { name: "aligned" });
  const learning = make("fieldset", {}, make("legend", {}, "Learn a direction"), start, end, aligned);
  const folders = () => {
    for (const [i, one] of [start, end].entries()) {
      one.input.replaceChildren(...shelf.folders.map((name, k) => make("option", { value: k, selected: k === i, title: name }, short(name))));
    }
    learning.hidden = shelf.folders.length < 2;
    missing.hidden = !learning.hidden;
  };
  const missing = make("p", { class: "note" }, "To learn one, start the studio with two folders: calotype studio --pictures A/ --pictures B/.");
  const [wanted, vae] = [size("256x256"), vaes()];
  const picture = slot("Picture", { name: "picture" });
  const direction = slot("Direction", { kind: "direction", name: "direction" });
  const file = make("input", { type: "file", accept: ".safetensors", "aria-label": "A direction's file" });
  file.addEventListener("change", async () => {
    if (!file.files.length) return;
    try {
      direction.set((await add(file.files[0], "direction")).id);
    } catch (error) {
      say(error.message);
    }
    file.value = "";
  });
  const strength = amount("Strength", 1, { least: -10, most: 10, step: 0.1, name: "strength" });
  const said = make("div", { class: "stage-part" });
  const learned = (job) => {
    const { figures } = job.results[0];
    const words = `${job.results[0].file}: learned from ${figures.counts.join(" and ")} pictures; of those held out it tells ${number(100 * figures.accuracy, 0)}% right (chance: 50%)`;
    said.replaceChildren(make("p", {}, words, " · ", make("a", { href: `${job.results[0].url}?download`, download: "" }, "Save")), same(job));
    result.replaceChildren(said);
  };
  const learn = () => ({ tab: "edit.learn", start: Number(start.value()), end: Number(end.value()), aligned: aligned.value(), size: wanted.value(), vae: vae.value() });
  form.append(vae, learning, missing);
  runner("Learn", learn, { host: learning, done: learned });
  const applying = make("fieldset", {}, make("legend", {}, "Move a picture along it"), picture, direction, field("or a file", file), make("div", { class: "pair" }, strength, wanted));
  form.append(applying);
  const apply = () => ({ tab: "edit.apply", picture: picture.value(), direction: direction.value(), strength: strength.value(), size: wanted.value(), vae: vae.value() });
  const target = make("div", { class: "stage-part" });
  runner("Apply", apply, { host: applying, done: (job) => (results(target, true)(job), result.replaceChildren(said, target)) });
  changed.addEventListener("shelf", folders);
  folders();
  result.append(hint("What leads from one set of pictures to another", "The difference of two folders' mean latents, and a picture moved along it, there or back."));
}
