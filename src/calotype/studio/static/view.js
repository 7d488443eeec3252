// Pictures seen at one place and one scale: panes that zoom and move together.

import { make } from "./base.js";

const images = new Map(); // address -> promise of an image

export function image(url) {
  if (!images.has(url)) {
    if (images.size > 24) images.delete(images.keys().next().value);
    const found = new Image();
    found.src = url;
    images.set(url, found.decode().then(() => found));
  }
  return images.get(url);
}

// what transparent pictures lie on
function checks(times) {
  const side = Math.round(8 * times);
  const canvas = make("canvas", { width: 2 * side, height: 2 * side });
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  context.fillStyle = style.getPropertyValue("--checker-2");
  context.fillRect(0, 0, 2 * side, 2 * side);
  context.fillStyle = style.getPropertyValue("--checker");
  context.fillRect(0, 0, side, side);
  context.fillRect(side, side, side, side);
  return canvas;
}

export class View extends EventTarget {
  constructor() {
    super();
    this.panes = [];
    this.picture = { width: 1, height: 1 };
    this.scale = 1;
    this.centre = [0.5, 0.5]; // in pixels of the picture
    this.fitted = true;
    this.waits = false;
    this.watch = new ResizeObserver(() => this.resized());
  }

  set(picture, panes) {
    for (const pane of this.panes) this.watch.unobserve(pane.box);
    const same = picture.width === this.picture.width && picture.height === this.picture.height;
    this.picture = picture;
    this.panes = panes;
    for (const pane of panes) this.watch.observe(pane.box);
    if (!same) this.fitted = true;
    this.resized();
  }

  resized() {
    if (this.fitted) this.fit();
    else this.draw();
  }

  get box() {
    const box = this.panes[0]?.box.getBoundingClientRect();
    return box && box.width ? box : { left: 0, top: 0, width: 300, height: 300 };
  }

  fit() {
    const { width, height } = this.box;
    this.scale = Math.min(width / this.picture.width, height / this.picture.height, 16);
    this.centre = [this.picture.width / 2, this.picture.height / 2];
    this.fitted = true;
    this.draw();
  }

  zoom(by, at = null) {
    const { width, height } = this.box;
    const [x, y] = at ?? [width / 2, height / 2];
    const least = Math.min(1, 0.5 * Math.min(width / this.picture.width, height / this.picture.height));
    const scale = Math.min(64, Math.max(least, this.scale * by));
    const point = [this.centre[0] + (x - width / 2) / this.scale, this.centre[1] + (y - height / 2) / this.scale];
    this.centre = [point[0] - (x - width / 2) / scale, point[1] - (y - height / 2) / scale];
    this.scale = scale;
    this.fitted = false;
    this.moved();
  }

  to(scale) {
    this.zoom(scale / this.scale);
  }

  move(dx, dy) {
    this.centre = [this.centre[0] - dx / this.scale, this.centre[1] - dy / this.scale];
    this.fitted = false;
    this.moved();
  }

  moved() {
    const { width, height } = this.picture;
    this.centre = [Math.min(width, Math.max(0, this.centre[0])), Math.min(height, Math.max(0, this.centre[1]))];
    this.draw();
  }

  // what can be seen: left, top, right, bottom, in whole pixels of the picture
  region() {
    const { width, height } = this.box;
    const [x, y] = this.centre;
    const edges = [x - width / 2 / this.scale, y - height / 2 / this.scale, x + width / 2 / this.scale, y + height / 2 / this.scale];
    const whole = [Math.floor(edges[0]), Math.floor(edges[1]), Math.ceil(edges[2]), Math.ceil(edges[3])];
    const [w, h] = [this.picture.width, this.picture.height];
    return [Math.max(0, whole[0]), Math.max(0, whole[1]), Math.min(w, whole[2]), Math.min(h, whole[3])];
  }

  draw() {
    if (this.waits) return;
    this.waits = true;
    requestAnimationFrame(() => {
      this.waits = false;
      for (const pane of this.panes) pane.draw(this);
      this.dispatchEvent(new Event("seen"));
    });
  }

  // a pane of this view: draws by `paint(context, view)` in pixels of the screen, the picture's at their place
  pane(caption, paint, small = "") {
    const canvas = make("canvas");
    const box = make("div", { class: "canvas" }, canvas);
    const node = make("figure", { class: "pane" }, box, make("figcaption", {}, caption, make("small", {}, small)));
    const pane = { node, box, canvas, paint };
    pane.draw = () => {
      const { width, height } = box.getBoundingClientRect();
      if (!width) return;
      const times = devicePixelRatio || 1;
      const [w, h] = [Math.round(width * times), Math.round(height * times)];
      if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
      const context = canvas.getContext("2d");
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.clearRect(0, 0, w, h);
      const s = this.scale * times;
      context.imageSmoothingEnabled = s < 2;
      const [left, top] = [w / 2 - this.centre[0] * s, h / 2 - this.centre[1] * s];
      if (this.picture.alpha) {
        context.fillStyle = context.createPattern(checks(times), "repeat");
        context.fillRect(left, top, this.picture.width * s, this.picture.height * s);
      }
      context.setTransform(s, 0, 0, s, left, top);
      pane.paint(context, this);
    };
    this.listen(box);
    return pane;
  }

  listen(box) {
    const touches = new Map();
    const at = (event) => {
      const place = box.getBoundingClientRect();
      return [event.clientX - place.left, event.clientY - place.top];
    };
    box.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(2 ** (-Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 120) / 300), at(event));
    }, { passive: false });
    box.addEventListener("dblclick", (event) => this.zoom(2, at(event)));
    box.addEventListener("pointerdown", (event) => {
      if (event.target.closest(".divider")) return;
      box.setPointerCapture(event.pointerId);
      touches.set(event.pointerId, at(event));
    });
    box.addEventListener("pointermove", (event) => {
      const before = touches.get(event.pointerId);
      if (!before) return;
      const after = at(event);
      if (touches.size === 2) {
        const other = [...touches].find(([id]) => id !== event.pointerId)[1];
        const far = (a) => Math.hypot(a[0] - other[0], a[1] - other[1]);
        this.zoom(far(after) / Math.max(1, far(before)), [(after[0] + other[0]) / 2, (after[1] + other[1]) / 2]);
      } else this.move(after[0] - before[0], after[1] - before[1]);
      touches.set(event.pointerId, after);
    });
    for (const end of ["pointerup", "pointercancel"]) box.addEventListener(end, (event) => touches.delete(event.pointerId));
  }

  key(event) {
    const moves = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
    if (event.key === "+" || event.key === "=") this.zoom(1.5);
    else if (event.key === "-") this.zoom(1 / 1.5);
    else if (event.key === "0") this.fit();
    else if (event.key === "1") this.to(1);
    else if (moves[event.key]) this.move(...moves[event.key]);
    else return false;
    return true;
  }
}

// The part of an image that can be seen, at its own pixels or at the screen's where these are fewer.
function part(from, view, canvas) {
  const [left, top, right, bottom] = view.region();
  const shrink = Math.min(1, view.scale * (devicePixelRatio || 1));
  const [w, h] = [Math.max(1, Math.round((right - left) * shrink)), Math.max(1, Math.round((bottom - top) * shrink))];
  [canvas.width, canvas.height] = [w, h];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff"; // transparent pictures are compared over white
  context.fillRect(0, 0, w, h);
  if (right > left && bottom > top) context.drawImage(from, left, top, right - left, bottom - top, 0, 0, w, h);
  return context.getImageData(0, 0, w, h);
}

const scratch = [document.createElement("canvas"), document.createElement("canvas")];

// 128 + factor (after - before), or factor |after - before|: what `calotype reconstruct` shows in its panel
export function difference(context, view, before, after, factor, signed) {
  const [a, b] = [part(before, view, scratch[0]), part(after, view, scratch[1])];
  const middle = signed ? 128 : 0;
  for (let i = 0; i < a.data.length; i += 4) {
    for (let c = i; c < i + 3; c += 1) {
      const apart = b.data[c] - a.data[c];
      b.data[c] = middle + factor * (signed ? apart : Math.abs(apart));
    }
    b.data[i + 3] = 255;
  }
  scratch[1].getContext("2d").putImageData(b, 0, 0);
  const [left, top, right, bottom] = view.region();
  context.drawImage(scratch[1], left, top, right - left, bottom - top);
}
