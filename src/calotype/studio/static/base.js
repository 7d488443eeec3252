// What all tabs share: elements, requests, the pictures at hand, fields, and jobs.

export const find = (selector, root = document) => root.querySelector(selector);
export const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Names come from files: they become text, never markup.
export function make(name, attributes = {}, ...children) {
  const svg = ["svg", "rect", "line", "text"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export async function ask(path, { body, method, bytes, signal } = {}) {
  let response;
  try {
    const content = body === undefined || body instanceof Blob ? body : JSON.stringify(body);
    response = await fetch(path, { method: method || (content === undefined ? "GET" : "POST"), body: content, signal });
  } catch {
    if (signal?.aborted) throw new Error("This is not wanted any more.");
    throw new Error("The studio does not answer any more; start it again with `calotype studio`.");
  }
  if (!response.ok) {
    let found = {};
    try {
      found = await response.json();
    } catch {
      found = {};
    }
    throw new Error(found.error || `The studio answered with ${response.status}.`);
  }
  return bytes ? response.arrayBuffer() : response.json();
}

export function say(message, gentle = false) {
  const trouble = find("#trouble");
  trouble.classList.toggle("gentle", gentle);
  const close = make("button", { "aria-label": "Close", onclick: () => (trouble.hidden = true) }, "✕");
  trouble.replaceChildren(make("span", {}, message), close);
  trouble.hidden = false;
}

// the end of a path says most
export const short = (path) => (path.length > 26 ? `…${path.slice(-25)}` : path);

export const number = (value, digits) => {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  return Number.isFinite(value) ? value.toFixed(digits).replace("-", "−") : "∞";
};

// --- pictures at hand ---

export const shelf = { vaes: [], folders: [], models: [], lpips: [], memory: null };
export const things = new Map(); // id -> facts
export const changed = new EventTarget(); // "things", "now", "picked", "shelf"
export const now = { id: null };

const tell = (name) => changed.dispatchEvent(new Event(name));

export function hold(...found) {
  for (const thing of found) things.set(thing.id, thing);
  tell("things");
}

export function choose(id) {
  now.id = id;
  tell("now");
}

// by hand, in the tray
export function pick(id) {
  choose(id);
  tell("picked");
}

export async function drop(id) {
  things.delete(id);
  if (now.id === id) now.id = pictures()[0]?.id ?? null;
  tell("things");
  tell("now");
  await ask(`/api/things/${id}`, { method: "DELETE" });
}

export const pictures = () => [...things.values()].filter((thing) => thing.kind === "picture");
export const thumbnail = (id) => `/api/things/${id}/thumbnail.png`;
export const seen = (id) => `/api/things/${id}/seen.png`;

export async function add(file, kind = "picture", name = file.name) {
  const thing = await ask(`/api/things?kind=${kind}&name=${encodeURIComponent(name)}`, { body: file });
  hold(thing);
  return thing;
}

// --- fields; each gives its value by value() ---

export function field(label, input, value = () => input.value) {
  const node = make("label", { class: "field" }, label, input);
  node.value = value;
  node.input = input;
  return node;
}

export const text = (label, attributes = {}) => field(label, make("input", { type: "text", ...attributes }));

export function amount(label, value, { least, most, step = 1, name, hint = "" } = {}) {
  const attributes = { type: "number", min: least, max: most, step, value, name, placeholder: hint, inputmode: "decimal" };
  const input = make("input", attributes);
  return field(label, input, () => {
    if (input.validity.badInput) throw new Error(`${label} is a number.`);
    return input.value === "" ? null : Number(input.value);
  });
}

export function options(label, pairs, attributes = {}) {
  const made = pairs.map((pair) => (Array.isArray(pair) ? pair : [pair, pair]));
  return field(label, make("select", attributes, ...made.map(([value, words]) => make("option", { value }, words))));
}

export function tick(words, checked = false, attributes = {}, more = null) {
  const input = make("input", { type: "checkbox", checked, ...attributes });
  const small = more ? make("small", {}, more) : null;
  const node = make("label", { class: "check" }, input, make("span", {}, words), small);
  node.value = () => input.checked;
  node.input = input;
  return node;
}

export function toggle(label, pairs, onchange, wide = false) {
  const node = make("div", { class: `switch${wide ? " wide" : ""}`, role: "group", "aria-label": label });
  const set = (value) => {
    node.chosen = value;
    for (const button of node.children) button.setAttribute("aria-pressed", String(button.dataset.value === value));
  };
  for (const [value, words] of pairs) {
    const click = () => {
      set(value);
      onchange(value);
    };
    node.append(make("button", { type: "button", "data-value": value, onclick: click }, words));
  }
  node.set = set;
  set(pairs[0][0]);
  return node;
}

export const size = (value = "") => text("Size (W×H)", { value, placeholder: "as it is", name: "size" });

// A place for a picture: those at hand, and what it looks like.
export function slot(label, { kind = "picture", optional = false, index = 0, name = null } = {}) {
  const select = make("select", { name });
  const shot = make("span", { class: "shot checker" });
  const node = make("label", { class: kind === "picture" ? "slot" : "field" }, kind === "picture" ? shot : null, label, select);
  let touched = false; // what was chosen stays
  const fill = () => {
    const before = select.value;
    const found = [...things.values()].filter((thing) => thing.kind === kind);
    const first = optional ? [make("option", { value: "" }, "none")] : [];
    if (!optional && !found.length) first.push(make("option", { value: "" }, kind === "picture" ? "add a picture above" : "none yet"));
    select.replaceChildren(...first, ...found.map((one) => make("option", { value: one.id }, one.name)));
    if (touched && things.has(before)) select.value = before;
    else if (!optional && found.length) select.value = (found[index] || found[found.length - 1]).id;
    show();
  };
  const show = () => {
    const thing = things.get(select.value);
    shot.replaceChildren(...(thing && kind === "picture" ? [make("img", { src: thumbnail(thing.id), alt: "" })] : []));
    node.dispatchEvent(new Event("chosen"));
  };
  select.addEventListener("change", () => {
    touched = true;
    show();
  });
  changed.addEventListener("things", fill);
  node.value = () => select.value || null;
  node.set = (id) => {
    touched = true;
    select.value = id;
    show();
  };
  fill();
  return node;
}

export function vaes(label = "VAE") {
  const node = options(label, [], { name: "vae" });
  node.value = () => Number(node.input.value || 0);
  const fill = () => {
    node.input.replaceChildren(...shelf.vaes.map((vae, i) => make("option", { value: i, disabled: Boolean(vae.error) }, vae.label ?? vae.name)));
    node.hidden = shelf.vaes.length < 2;
  };
  changed.addEventListener("shelf", fill);
  fill();
  return node;
}

// --- jobs ---

const stops = []; // of what runs, the last begun at the end
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && stops.length && !find("dialog[open]")) stops.at(-1)();
});

// What becomes of a job, until its end, in a bar with a button that cancels it.
export async function follow(job, words, host, preview = null) {
  const bar = make("i");
  const says = make("span", {}, words);
  let stopping = false;
  const stop = () => {
    stopping = true;
    says.textContent = "Cancelling";
    ask(`/api/jobs/${job.id}/cancel`, { method: "POST" }).catch((error) => say(error.message));
  };
  const cancel = make("button", { type: "button", onclick: stop }, "Cancel");
  host.replaceChildren(make("div", { class: "progress" }, says, cancel, make("div", { class: "rail" }, bar)));
  stops.push(stop);
  const source = new EventSource(`/api/jobs/${job.id}/events`);
  try {
    return await new Promise((resolve, reject) => {
      let previews = 0;
      source.onmessage = (event) => {
        const facts = JSON.parse(event.data);
        if (!["waiting", "running"].includes(facts.state)) return resolve(facts);
        const before = facts.place === 1 ? "one job is" : `${facts.place} jobs are`;
        if (stopping) says.textContent = "Cancelling";
        else if (facts.state === "running") says.textContent = `${facts.says} · ${Math.round(100 * facts.part)}%`;
        else says.textContent = facts.place ? `Waiting: ${before} before yours` : "Waiting";
        bar.style.width = `${100 * facts.part}%`;
        if (preview && facts.preview > previews) {
          previews = facts.preview;
          preview(`/api/jobs/${job.id}/preview?${previews}`);
        }
      };
      // the browser asks again by itself, and does not say that nobody is there
      const gone = () => source.readyState === EventSource.CLOSED && reject(new Error("The studio knows nothing of this any more; run it again."));
      source.onerror = () => ask("/api/visit").then(gone, reject);
    });
  } finally {
    source.close();
    stops.splice(stops.indexOf(stop), 1);
  }
}

// What a job said of its end, and its pictures to those at hand.
export function ended(job, host) {
  const notes = job.notes.map((note) => make("li", {}, note));
  if (job.state === "failed") host.replaceChildren(make("p", { class: "error", role: "alert" }, job.says));
  else if (job.state === "cancelled") host.replaceChildren(make("p", { class: "note" }, job.says));
  else host.replaceChildren(...(notes.length ? [make("ul", { class: "notes" }, ...notes)] : []));
  hold(...job.results.filter((one) => one.thing).map((one) => one.thing));
}

// On a phone what is shown stands below what is asked for.
export function reveal(asked) {
  if (matchMedia("(max-width: 860px)").matches) asked.closest(".tab").querySelector(".stage").scrollIntoView();
}

// A button that has a form done, and what is shown while and after.
export function runner(words, form, { done, preview = null, host }) {
  const button = make("button", { type: "button", class: "strong run" }, words);
  const status = make("div", { class: "status", "aria-live": "polite" });
  async function run() {
    if (button.disabled) return;
    button.disabled = true;
    status.replaceChildren();
    try {
      const asked = await form();
      const end = await follow(await ask("/api/jobs", { body: asked }), words, status, preview);
      ended(end, status);
      if (end.state === "done") {
        await done(end, asked);
        reveal(button);
      }
    } catch (error) {
      status.replaceChildren(make("p", { class: "error", role: "alert" }, error.message));
    } finally {
      button.disabled = false;
    }
  }
  button.addEventListener("click", run);
  host.append(button, status);
  return { run, button, status };
}

export function same(job) {
  const part = (title, words) => {
    const copy = make("button", { type: "button", onclick: () => navigator.clipboard.writeText(words).then(() => (copy.textContent = "copied")) }, "copy");
    return make("div", {}, make("h4", {}, title), make("pre", { class: title === "In Python" ? "python" : "command" }, words), copy);
  };
  const parts = [part("The same on the command line", job.command), part("In Python", job.python)];
  return make("details", { class: "same" }, make("summary", {}, "The same on the command line, and in Python"), ...parts);
}

export function card(result, caption, ...more) {
  const thing = result.thing;
  const picture = thing ? { src: seen(thing.id), width: thing.width, height: thing.height } : { src: result.url };
  const image = make("img", { ...picture, alt: caption, class: "checker", loading: "lazy" });
  const save = make("a", { href: thing ? `/api/things/${thing.id}/file` : `${result.url}?download`, download: thing?.name ?? "" }, "Save");
  return make("figure", { class: "shot-card" }, image, make("figcaption", {}, make("span", {}, caption), ...more, save));
}

export const hint = (title, ...words) => make("div", { class: "hint" }, make("b", {}, title), ...words.map((one) => make("p", {}, one)));
