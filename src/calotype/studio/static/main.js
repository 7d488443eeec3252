// Tabs, the tray of pictures, dropping them, and keys of the whole page.

import { add, all, ask, changed, choose, drop, find, hold, make, now, pictures, say, shelf, things, thumbnail } from "./base.js";
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
        const title = `${thing.name}, ${thing.width}×${thing.height}`;
        const image = make("img", { src: thumbnail(thing.id), alt: title });
        const pick = make("button", { type: "button", class: "pick checker", title, onclick: () => choose(thing.id) }, image);
        const away = make("button", { type: "button", class: "drop-it", "aria-label": `Remove ${thing.name}`, onclick: () => drop(thing.id).catch((error) => say(error.message)) }, "✕");
        return make("li", { class: thing.id === now.id ? "now" : null }, pick, away);
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
    hold(...(await ask("/api/visit")).things);
    if (pictures().length) choose(pictures()[0].id);
    Object.assign(shelf, await ask("/api/shelf"));
    changed.dispatchEvent(new Event("shelf"));
    document.body.dataset.ready = "";
    for (const vae of shelf.vaes) if (vae.error) say(`${vae.name}: ${vae.error}`);
  } catch (error) {
    say(error.message);
  }
}

open();
