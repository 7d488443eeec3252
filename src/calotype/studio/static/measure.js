// Measure: folders given on the command line, evaluated and probed.

import { amount, changed, hint, make, options, runner, same, shelf, short, tick, toggle, vaes } from "./base.js";

let parts = {};

export function open(section) {
  const side = make("div", { class: "side" });
  const stage = make("div", { class: "stage" });
  section.append(side, stage);
  const kind = toggle("Measure", [["evaluate", "Evaluate"], ["probe", "Probe"]], show, true);
  const folder = options("Pictures", [], { name: "folder" });
  const choice = make("fieldset");
  const metrics = make("fieldset");
  const protocol = options("Protocol", ["whole", "crop256", "stability-card", "lightningdit", "dc-ae", "llamagen"], { name: "protocol" });
  const vae = vaes();
  const lpips = options("LPIPS", ["none"], { name: "lpips" });
  const limit = amount("At most so many pictures", null, { least: 1, name: "limit", hint: "all" });
  const [evaluate, probe] = [make("div", { class: "side-form" }), make("div", { class: "side-form" })];
  side.append(kind, folder, limit, evaluate, probe);
  evaluate.append(choice, metrics, protocol);
  probe.append(vae, lpips);
  parts = { stage, evaluate, probe, folder, ticks: [], metrics: [] };
  const fill = () => {
    const none = kind.chosen === "probe" ? [make("option", { value: "" }, "cards that calotype draws")] : [];
    const before = folder.input.value;
    folder.input.replaceChildren(...none, ...shelf.folders.map((name, i) => make("option", { value: i, title: name }, short(name))));
    if ([...folder.input.options].some((one) => one.value === before)) folder.input.value = before;
    else if (shelf.folders.length) folder.input.value = "0";
    parts.ticks = shelf.vaes.map((one, i) => tick(one.label ?? one.name, !one.error, { name: `vae-${i}`, disabled: Boolean(one.error) }));
    choice.replaceChildren(make("legend", {}, "VAEs"), ...parts.ticks);
    const there = [["psnr", "PSNR"], ["ssim", "SSIM"], ["ms_ssim", "MS-SSIM"], ...shelf.lpips.map((net) => [`lpips_${net}`, `LPIPS (${net})`])];
    parts.metrics = there.map(([key, words]) => Object.assign(tick(words, key !== "ms_ssim", { name: key }), { key }));
    metrics.replaceChildren(make("legend", {}, "Metrics"), ...parts.metrics);
    lpips.input.replaceChildren(...["none", ...shelf.lpips].map((one) => make("option", { value: one }, one)));
    missing.hidden = shelf.folders.length > 0 || kind.chosen === "probe";
  };
  const missing = make("p", { class: "note" }, "No folder was given: calotype studio --pictures photos/");
  side.insertBefore(missing, limit);
  const where = () => (folder.value() === "" ? null : Number(folder.value()));
  runner("Evaluate", () => ({
    tab: "measure.evaluate", folder: where(), vaes: parts.ticks.map((one, i) => (one.value() ? i : -1)).filter((i) => i >= 0),
    metrics: parts.metrics.filter((one) => one.value()).map((one) => one.key), protocol: protocol.value(), limit: limit.value(),
  }), { host: evaluate, done });
  runner("Probe", () => ({ tab: "measure.probe", vae: vae.value(), folder: where(), lpips: lpips.value(), limit: limit.value() }), { host: probe, done });
  changed.addEventListener("shelf", fill);
  parts.fill = fill;
  show("evaluate");
  const words = "Evaluate sends the same pictures through any number of VAEs and reports with intervals, worst pictures first. Probe says what a latent space does. The report stands here, and can be saved as one page.";
  stage.append(hint("Figures of a whole folder", words));
}

function show(kind) {
  parts.evaluate.hidden = kind !== "evaluate";
  parts.probe.hidden = kind !== "probe";
  parts.fill?.();
}

function done(job) {
  const [report, ...data] = job.results;
  const links = [report, ...data].flatMap((one, i) => [i ? " · " : "", make("a", { href: `${one.url}?download`, download: one.file.split("/").pop() }, one.file.split("/").pop())]);
  const frame = make("iframe", { class: "report", src: report.url, title: "Report", sandbox: "allow-scripts allow-downloads" });
  parts.stage.replaceChildren(make("p", { class: "note" }, "Save: ", ...links), frame, same(job));
}
