// Tabs, the tray of pictures, dropping them, and keys of the whole page.

import { add, ask, changed, choose, drop, ended, find, follow, hold, make, now, pick, pictures, say, shelf, thumbnail } from "./base.js";
import * as draw from "./draw.js";
import * as edit from "./edit.js";
import * as latents from "./latents.js";
import * as look from "./look.js";
import * as measure from "./measure.js";
import * as plan from "./plan.js";

const tabs = { look, latents, edit, draw, measure, plan };
let shown = "look";

function go(name) {
  shown = name;
  for (const key of Object.keys(tabs)) {
    find(`#${key}`).hidden = key !== name;
    find(`#go-${key}`).setAttribute("aria-selected", String(key === name));
    find(`#go-${key}`).tabIndex = key === name ? 0 : -1;
  }
  find(".tray").hidden = name === "measure" || name === "plan";
  if (location.hash !== `#${name}`) history.replaceState(null, "", `#${name}`);
  tabs[name].shown?.();
}

function tray() {
  const list = find("#things");
  const draw = () => {
    list.replaceChildren(
      ...pictures().map((thing) => {
        const title = `${thing.name}, ${thing.width}×${thing.height}${thing.made ? ", made here" : ""}`;
        const image = make("img", { src: thumbnail(thing.id), alt: title });
        const shot = make("button", { type: "button", class: "pick checker", title, "aria-pressed": String(thing.id === now.id), onclick: () => pick(thing.id) }, image);
        const away = make("button", { type: "button", class: "drop-it", "aria-label": `Remove ${thing.name}`, onclick: () => drop(thing.id).catch((error) => say(error.message)) }, "✕");
        return make("li", { class: `${thing.id === now.id ? "now" : ""}${thing.made ? " made" : ""}` }, shot, away);
      }),
    );
  };
  changed.addEventListener("things", draw);
  changed.addEventListener("now", draw);
}

async function take(files) {
  find("#trouble").hidden = true;
  for (const file of files) {
    try {
      const thing = await add(file, file.name.endsWith(".safetensors") ? "direction" : "picture");
      if (thing.kind === "picture") choose(thing.id);
      if (thing.notices?.length) say(`${thing.name}: ${thing.notices.join(" ")}`, true);
    } catch (error) {
      say(error.message);
    }
  }
}

function dropping() {
  const input = find("#files");
  input.addEventListener("change", () => take([...input.files]).then(() => (input.value = "")));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dragging"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    take([...event.dataTransfer.files]);
  });
  addEventListener("paste", (event) => event.clipboardData.files.length && take([...event.clipboardData.files]));
}

function keys() {
  find("#keys").addEventListener("click", () => find("#help").showModal());
  find("#close").addEventListener("click", () => find("#help").close());
  find("#forget").addEventListener("click", async () => {
    await ask("/api/visit", { method: "DELETE" }).catch(() => null);
    location.reload();
  });
  addEventListener("keydown", (event) => {
    const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName) || find("dialog[open]");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.getAttribute("role") === "tab" && /^Arrow(Left|Right)$/.test(event.key)) {
      const order = Object.keys(tabs);
      const next = order[(order.indexOf(shown) + (event.key === "ArrowRight" ? 1 : order.length - 1)) % order.length];
      go(next);
      find(`#go-${next}`).focus();
      return;
    }
    const step = { n: 1, p: -1 }[event.key];
    const list = pictures().filter((thing) => !thing.made || thing.id === now.id);
    if (step && list.length) {
      const at = list.findIndex((thing) => thing.id === now.id);
      choose(list[(at + step + list.length) % list.length].id);
      tabs[shown].next?.();
    } else if (tabs[shown].key?.(event)) event.preventDefault();
  });
}

// Jobs that were begun before the page was loaded anew; what they make is added to the pictures.
function resume(jobs) {
  for (const job of jobs) {
    const status = make("div", { class: "status" });
    find("#still").append(status);
    follow(job, job.doing, status).then((end) => {
      ended(end, status);
      if (end.state === "done" && !end.notes.length) status.remove();
    }, (error) => say(error.message));
  }
}

async function open() {
  tray();
  dropping();
  keys();
  for (const [name, tab] of Object.entries(tabs)) {
    tab.open(find(`#${name}`));
    find(`#go-${name}`).addEventListener("click", () => go(name));
  }
  const wanted = location.hash.slice(1);
  go(wanted in tabs ? wanted : "look");
  try {
    const visit = await ask("/api/visit");
    hold(...visit.things);
    resume(visit.jobs);
    if (pictures().length) choose(pictures()[0].id);
    Object.assign(shelf, await ask("/api/shelf"));
    changed.dispatchEvent(new Event("shelf"));
    document.body.dataset.ready = "";
    const wrong = shelf.vaes.filter((vae) => vae.error).map((vae) => (vae.error.startsWith(vae.name) ? vae.error : `${vae.name}: ${vae.error}`));
    if (wrong.length) say(wrong.join(" "));
  } catch (error) {
    say(error.message);
  }
}

open();
