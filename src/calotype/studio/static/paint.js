// Painting a mask over a picture: white is what changes, as masks of the command line have it.

import { add, amount, changed, make, say, seen, things, toggle } from "./base.js";
import { image } from "./view.js";

const MOST = 2 ** 25; // pixels of a mask

export class Painter {
  // `picture()` names the picture under it, `size()` the size it is brought to ("" leaves it).
  constructor(picture, size) {
    this.picture = picture;
    this.size = size;
    this.under = make("canvas");
    this.over = make("canvas", { class: "mask", "aria-label": "Mask, to paint on" });
    this.over.getContext("2d", { willReadFrequently: true });
    this.brush = amount("brush, pixels", 32, { least: 1, most: 2000, name: "brush" });
    this.mode = toggle("Brush", [["paint", "Paint"], ["erase", "Erase"]], () => null);
    const clear = make("button", { type: "button", class: "plain", onclick: () => this.clear() }, "Clear");
    const layers = make("div", { class: "layers" }, this.under, this.over);
    this.node = make("figure", { class: "painter" }, layers, make("div", { class: "tools" }, this.mode, this.brush, clear));
    this.kept = null; // the mask as it was uploaded
    this.wanted = true;
    this.listen();
    changed.addEventListener("things", () => this.show());
  }

  // whether there is anything to paint; where a mask comes from elsewhere, there is not
  want(wanted) {
    this.wanted = wanted;
    return this.show();
  }

  async show() {
    const thing = this.wanted ? things.get(this.picture()) : null;
    this.node.hidden = !thing;
    if (!thing) return;
    const [, width, height] = /^\s*(\d+)[x×](\d+)\s*$/.exec(this.size()) ?? [0, thing.width, thing.height];
    const [w, h] = [Number(width), Number(height)];
    const key = `${thing.id} ${w} ${h}`;
    if (key === this.key) return;
    if (w * h > MOST) {
      this.node.hidden = true;
      say(`${w}×${h} pixels are too many to paint on; give a smaller size, or a picture as the mask.`);
      return;
    }
    const found = await image(seen(thing.id));
    this.key = key;
    const resized = this.over.width !== w || this.over.height !== h;
    [this.under.width, this.under.height] = [w, h];
    if (resized) [this.over.width, this.over.height] = [w, h];
    if (resized) this.kept = null;
    const scale = Math.max(w / thing.width, h / thing.height); // until it covers it, and cut around the middle
    const [sw, sh] = [w / scale, h / scale];
    this.under.getContext("2d").drawImage(found, (thing.width - sw) / 2, (thing.height - sh) / 2, sw, sh, 0, 0, w, h);
  }

  clear() {
    this.over.getContext("2d").clearRect(0, 0, this.over.width, this.over.height);
    this.kept = null;
  }

  get painted() {
    const { width, height } = this.over;
    if (!width) return false;
    return this.over.getContext("2d").getImageData(0, 0, width, height).data.some((value, i) => i % 4 === 3 && value > 127);
  }

  listen() {
    let last = null;
    const line = (event) => {
      const box = this.over.getBoundingClientRect();
      const at = [((event.clientX - box.left) / box.width) * this.over.width, ((event.clientY - box.top) / box.height) * this.over.height];
      const context = this.over.getContext("2d");
      context.globalCompositeOperation = this.mode.chosen === "erase" ? "destination-out" : "source-over";
      context.strokeStyle = context.fillStyle = "#ff2d6f";
      context.lineWidth = this.brush.value() ?? 32;
      context.lineCap = context.lineJoin = "round";
      context.beginPath();
      context.moveTo(...(last ?? at));
      context.lineTo(at[0] + 0.01, at[1]);
      context.stroke();
      last = at;
      this.kept = null;
    };
    this.over.addEventListener("pointerdown", (event) => {
      this.over.setPointerCapture(event.pointerId);
      last = null;
      line(event);
    });
    this.over.addEventListener("pointermove", (event) => this.over.hasPointerCapture(event.pointerId) && line(event));
  }

  // The mask as a picture at hand, black and white; made once for what was painted.
  async mask() {
    if (this.kept && things.has(this.kept)) return this.kept;
    if (!this.painted) throw new Error("Nothing is painted yet; paint on the picture what is to change.");
    const { width, height } = this.over;
    const canvas = make("canvas", { width, height });
    const context = canvas.getContext("2d");
    const from = this.over.getContext("2d").getImageData(0, 0, width, height);
    for (let i = 0; i < from.data.length; i += 4) {
      const level = from.data[i + 3] > 127 ? 255 : 0;
      from.data.set([level, level, level, 255], i);
    }
    context.putImageData(from, 0, 0);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    this.kept = (await add(blob, "picture", "mask.png")).id;
    return this.kept;
  }
}
