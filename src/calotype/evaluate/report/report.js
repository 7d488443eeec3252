"use strict";
(() => {
  const find = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const data = JSON.parse(find("#data").textContent);

  // Names come from files: they become text, never markup.
  function make(name, attributes = {}, ...children) {
    const svg = ["svg", "path", "line", "text", "g"].includes(name);
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  const value = (v) => (v === null || v === undefined ? NaN : v === "inf" ? Infinity : v);

  function written(v, metric) {
    if (Number.isNaN(v)) return "–";
    if (!Number.isFinite(v)) return "∞";
    return v.toFixed(metric.digits).replace("-", "−");
  }

  const withUnit = (v, metric) => `${written(v, metric)} ${metric.unit}`.trim();

  // More is better, whatever the metric.
  function goodness(v, metric) {
    if (metric.better === "nearest") return -Math.abs(v - metric.ideal);
    return metric.better === "higher" ? v : -v;
  }

  const wanted = (metric) => (metric.better === "nearest" ? `${metric.ideal} is best` : `${metric.better} is better`);

  function contents() {
    const nav = find("#contents");
    for (const section of all("main > section")) {
      nav.append(make("a", { href: `#${section.id}` }, find("h2", section).textContent));
    }
  }

  function sortable(table) {
    const body = find("tbody", table);
    all("thead th", table).forEach((th, column) => {
      const button = make("button", { type: "button" });
      button.append(th.firstChild);
      th.prepend(button);
      th.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const order = th.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
        all("th[aria-sort]", table).forEach((other) => other.setAttribute("aria-sort", "none"));
        th.setAttribute("aria-sort", order);
        const key = (row) => row.cells[column].dataset.value;
        const number = (row) => (key(row) === "" ? NaN : Number(key(row)));
        const sign = order === "ascending" ? 1 : -1;
        const compare = (a, b) => {
          if (column === 0) return sign * key(a).localeCompare(key(b));
          if (Number.isNaN(number(a)) || Number.isNaN(number(b))) return Number.isNaN(number(a)) - Number.isNaN(number(b));
          return sign * (number(a) - number(b));
        };
        body.append(...[...body.rows].sort(compare));
      });
    });
  }

  // --- the chart: a point for each picture ---

  function ticks(low, high, wanted) {
    const rough = (high - low) / wanted;
    const base = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * base).find((s) => s >= rough * 0.999999);
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i <= high / step + 1e-9; i += 1) {
      found.push([i * step, (i * step + 0).toFixed(digits).replace("-", "−")]);
    }
    return found;
  }

  function bounds(values) {
    let low = Infinity;
    let high = -Infinity;
    for (const v of values) {
      if (v < low) low = v;
      if (v > high) high = v;
    }
    if (low > high) return [0, 1];
    const aside = low === high ? Math.abs(low) * 0.1 || 1 : (high - low) * 0.06;
    return [low - aside, high + aside];
  }

  function chart() {
    const plot = find("#plot");
    const says = find("#plot-says");
    const choose = (key) => find(`#choose-${key}`);
    const linked = new Set(data.crops);
    const titles = data.metrics.map((metric, i) => [String(i), metric.title]);
    const labels = data.vaes.map((label, i) => [String(i), label]);
    const tip = make("div", { class: "tip", role: "status" });
    tip.hidden = true;
    let points = [];
    let now = -1;
    let svg = null;

    function options(select, list, chosen) {
      select.replaceChildren(...list.map(([key, text]) => make("option", { value: key }, text)));
      select.value = chosen;
    }

    // two that judge otherwise, of those that every VAE has: a VAE without a posterior has no rate, and would be missing
    function start() {
      const known = (metric) => data.values[metric.key].every((row) => row.some((v) => v !== null));
      const [x = 0, ...others] = [...data.metrics.keys()].filter((i) => known(data.metrics[i]));
      const y = others.find((i) => data.metrics[i].better !== data.metrics[x].better) ?? others[0];
      return [x, y ?? Math.min(1, data.metrics.length - 1)];
    }

    function ask() {
      const vaes = choose("mode").value === "vaes";
      const [x, y] = vaes ? [0, 1] : start();
      options(choose("x"), vaes ? labels : titles, String(x));
      options(choose("y"), vaes ? labels : titles, String(y));
      choose("by").closest("div").hidden = !vaes;
      find(".legend", find("#chart")).hidden = vaes || data.vaes.length < 2;
      draw();
    }

    function pairs() {
      const [x, y, by] = ["x", "y", "by"].map((key) => Number(choose(key).value));
      if (choose("mode").value === "vaes") {
        const metric = data.metrics[by];
        const of = data.values[metric.key];
        const axes = [x, y].map((vae) => ({ metric, label: `${data.vaes[vae]}: ${metric.title}` }));
        return { axes, series: [{ vae: y, xs: of[x], ys: of[y] }], even: true };
      }
      const axes = [x, y].map((i) => ({ metric: data.metrics[i], label: data.metrics[i].title }));
      const of = (i, vae) => data.values[data.metrics[i].key][vae];
      return { axes, series: data.vaes.map((_, vae) => ({ vae, xs: of(x, vae), ys: of(y, vae) })), even: false };
    }

    function draw() {
      const { axes, series, even } = pairs();
      now = -1;
      tip.hidden = true;
      points = [];
      for (const { vae, xs, ys } of series) {
        xs.forEach((a, picture) => {
          const [x, y] = [value(a), value(ys[picture])];
          if (Number.isFinite(x) && Number.isFinite(y)) points.push({ picture, vae, x, y });
        });
      }
      // no VAE's points lie over all of another's, and those with crops lie on top
      points.sort((a, b) => linked.has(a.picture) - linked.has(b.picture) || a.picture - b.picture);
      const width = Math.max(280, plot.clientWidth);
      const height = Math.round(Math.min(520, Math.max(280, width * 0.5)));
      let [xb, yb] = [bounds(points.map((p) => p.x)), bounds(points.map((p) => p.y))];
      if (even) xb = yb = bounds(points.flatMap((p) => [p.x, p.y]));
      const yTicks = ticks(yb[0], yb[1], height / 60);
      const box = { left: 30 + 7 * Math.max(...yTicks.map((t) => t[1].length)), right: width - 14, top: 10, bottom: height - 46 };
      const px = (v) => box.left + ((v - xb[0]) / (xb[1] - xb[0])) * (box.right - box.left);
      const py = (v) => box.bottom - ((v - yb[0]) / (yb[1] - yb[0])) * (box.bottom - box.top);
      const titled = ({ metric, label }) => {
        return `${label} (${metric.unit ? `${metric.unit}, ` : ""}${wanted(metric)})`;
      };
      svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, tabindex: 0, role: "application" });
      svg.classList.toggle("many", points.length > 1000);
      svg.setAttribute("aria-label", `${titled(axes[1])} over ${titled(axes[0])}; ${points.length} points, arrow keys go through them`);
      for (const [v, text] of yTicks) {
        svg.append(make("line", { class: "grid", x1: box.left, x2: box.right, y1: py(v), y2: py(v) }));
        svg.append(make("text", { class: "tick", x: box.left - 6, y: py(v) + 4, "text-anchor": "end" }, text));
      }
      for (const [v, text] of ticks(xb[0], xb[1], width / 80)) {
        svg.append(make("line", { class: "grid", x1: px(v), x2: px(v), y1: box.top, y2: box.bottom }));
        svg.append(make("text", { class: "tick", x: px(v), y: box.bottom + 17, "text-anchor": "middle" }, text));
      }
      svg.append(make("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
      if (even) svg.append(make("line", { class: "even", x1: px(xb[0]), y1: py(xb[0]), x2: px(xb[1]), y2: py(xb[1]) }));
      const [mx, my] = [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
      svg.append(make("text", { class: "label x", x: mx, y: height - 8, "text-anchor": "middle" }, titled(axes[0])));
      svg.append(make("text", { class: "label y", x: 12, y: my + 4, "text-anchor": "middle", transform: `rotate(-90 12 ${my})` }, titled(axes[1])));
      const shapes = all("defs path").map((path) => path.getAttribute("d"));
      for (const point of points) {
        [point.px, point.py] = [px(point.x), py(point.y)];
        point.node = make("path", {
          class: `mark s${point.vae % 8}${linked.has(point.picture) ? " linked" : ""}`,
          d: shapes[point.vae % shapes.length],
          transform: `translate(${point.px.toFixed(1)} ${point.py.toFixed(1)})`,
          "data-picture": point.picture,
          "data-vae": point.vae,
        });
        svg.append(point.node);
      }
      plot.replaceChildren(svg, tip);
      says.textContent = even ? score(axes[0].metric) : "";
      svg.addEventListener("pointermove", (event) => show(nearest(event), axes));
      svg.addEventListener("pointerleave", () => show(-1, axes));
      svg.addEventListener("click", (event) => {
        show(nearest(event), axes);
        if (now >= 0) go(points[now].picture);
      });
      svg.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (step && points.length) {
          show(now < 0 ? (step > 0 ? 0 : points.length - 1) : (now + step + points.length) % points.length, axes);
          event.preventDefault();
        } else if (event.key === "Enter" && now >= 0) {
          go(points[now].picture);
        }
      });
      points.sort((a, b) => a.px - b.px);
    }

    function score(metric) {
      const [x, y] = [Number(choose("x").value), Number(choose("y").value)];
      const of = data.values[metric.key];
      let [wins, both] = [0, 0];
      of[y].forEach((v, i) => {
        const [a, b] = [value(of[x][i]), value(v)];
        if (Number.isNaN(a) || Number.isNaN(b)) return;
        both += 1;
        if (goodness(b, metric) > goodness(a, metric)) wins += 1;
      });
      const side = { higher: ", above the dashed line", lower: ", below the dashed line" }[metric.better] || "";
      return `${data.vaes[y]} is better than ${data.vaes[x]} on ${wins} of ${both} pictures${side}.`;
    }

    function nearest(event) {
      const box = svg.getBoundingClientRect();
      const scale = svg.viewBox.baseVal.width / box.width;
      const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
      let [best, found] = [24 ** 2, -1];
      points.forEach((point, i) => {
        const far = (point.px - x) ** 2 + (point.py - y) ** 2;
        if (far < best) [best, found] = [far, i];
      });
      return found;
    }

    function show(i, axes) {
      if (i === now) return;
      if (now >= 0) points[now].node.classList.remove("now");
      now = i;
      tip.hidden = i < 0;
      if (i < 0) return;
      const point = points[i];
      point.node.classList.add("now");
      const vae = choose("mode").value === "vaes" ? "" : data.vaes[point.vae];
      const lines = axes.map((axis, k) => `${axis.label} ${withUnit(k ? point.y : point.x, axis.metric)}`);
      const more = linked.has(point.picture) ? [] : [make("div", {}, "no crop in this page")];
      tip.replaceChildren(make("b", {}, data.pictures[point.picture]), vae, ...lines.map((line) => make("div", {}, line)), ...more);
      const left = point.px < plot.clientWidth / 2;
      tip.style.left = `${left ? point.px + 12 : point.px - 12}px`;
      tip.style.top = `${point.py}px`;
      tip.style.transform = `translate(${left ? "0" : "-100%"}, -50%)`;
    }

    options(choose("by"), titles, "0");
    choose("mode").addEventListener("change", ask);
    for (const key of ["x", "y", "by"]) choose(key).addEventListener("change", draw);
    ask();
    let width = plot.clientWidth;
    new ResizeObserver(() => {
      if (plot.clientWidth !== width) {
        width = plot.clientWidth;
        draw();
      }
    }).observe(plot);
  }

  function go(picture) {
    const article = find(`#picture-${picture}`);
    if (!article) return;
    all("article.found").forEach((other) => other.classList.remove("found"));
    article.classList.add("found");
    article.scrollIntoView({ block: "start" });
    article.focus({ preventScroll: true });
  }

  // --- pictures: order, slider, differences ---

  function ranked() {
    const metric = data.metrics.find((one) => one.key === find("#choose-order").value);
    const figures = data.values[metric.key][Number(find("#choose-order-vae").value)].map(value);
    const at = (i) => (Number.isNaN(figures[i]) ? -Infinity : goodness(figures[i], metric)); // failures are the worst
    return data.pictures.map((_, i) => i).sort((a, b) => (at(a) === at(b) ? a - b : at(a) < at(b) ? -1 : 1));
  }

  function pictures() {
    let shown = 50;
    function order() {
      const places = ranked();
      find("#articles").append(...places.map((i) => find(`#picture-${i}`)).filter(Boolean));
      list(places);
    }
    function list(places) {
      const metrics = data.metrics.slice(0, data.metricsToOrderBy);
      const chosen = metrics.find((one) => one.key === find("#choose-order").value);
      const head = make("tr", {}, make("th", { scope: "col" }, "Picture"));
      for (const label of data.vaes) head.append(make("th", { scope: "col" }, label, make("small", {}, chosen.title)));
      const body = make("tbody");
      for (const i of places.slice(0, shown)) {
        const name = make("th", { scope: "row" });
        name.append(data.crops.includes(i) ? make("a", { href: `#picture-${i}` }, data.pictures[i]) : data.pictures[i]);
        const cells = data.vaes.map((_, vae) => {
          const why = data.why[chosen.key][vae][i];
          return make("td", {}, written(value(data.values[chosen.key][vae][i]), chosen), ...(why ? [make("small", {}, why)] : []));
        });
        body.append(make("tr", {}, name, ...cells));
      }
      const box = make("div", { class: "scrolls", tabindex: 0 }, make("table", {}, make("thead", {}, head), body));
      find("#all-pictures").replaceChildren(box);
      if (places.length > shown) {
        const more = make("button", { type: "button", class: "more" }, `Show more of ${places.length}`);
        more.addEventListener("click", () => {
          shown += 500;
          list(places);
        });
        find("#all-pictures").append(more);
      }
    }
    for (const key of ["order", "order-vae"]) find(`#choose-${key}`).addEventListener("change", order);
    order();
  }

  function tiles() {
    const side = find("#choose-side");
    if (!side) return;
    const factor = find("#factor");
    const view = find("#choose-view");
    const zoom = find("#choose-zoom");
    const frames = [];

    for (const row of all(".tiles")) {
      const images = new Map(all(".tile", row).map((tile) => [tile.dataset.vae, find("img", tile)]));
      const mine = [];
      for (const tile of all(".tile", row)) {
        if (tile.dataset.vae === "original") continue;
        const image = find("img", tile);
        const over = make("img", { class: "over", alt: "", hidden: "" });
        const edge = make("div", { class: "edge" });
        const canvas = make("canvas", { hidden: "" });
        const wipe = make("input", { type: "range", class: "wipe", min: 0, max: 100, step: 1, value: 0 });
        find(".frame", tile).append(over, edge, canvas, wipe);
        const frame = { tile, images, image, over, edge, canvas, wipe, drawn: "" };
        wipe.addEventListener("input", () => mine.forEach((other) => slide(other, wipe.value)));
        mine.push(frame);
        frames.push(frame);
      }
    }

    function slide(frame, percent) {
      frame.wipe.value = percent;
      find(".frame", frame.tile).style.setProperty("--wipe", `${percent}%`);
      frame.wipe.setAttribute("aria-valuetext", `${percent}% ${frame.left}`);
    }

    function compare() {
      for (const frame of frames) {
        const key = frame.images.has(side.value) && side.value !== frame.tile.dataset.vae ? side.value : "original";
        frame.left = key === "original" ? "original" : data.vaes[Number(key)];
        frame.over.src = frame.images.get(key).src;
        frame.over.hidden = false;
        frame.wipe.setAttribute("aria-label", `${frame.left} on the left of ${frame.image.alt}`);
        slide(frame, frame.wipe.value);
      }
    }

    // 128 + factor (reconstruction - original), as calotype's panels show it
    function difference(frame) {
      const { canvas, image, images } = frame;
      if (frame.drawn === factor.value || !image.complete || !images.get("original").complete) return;
      frame.drawn = factor.value;
      [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
      const context = canvas.getContext("2d", { willReadFrequently: true });
      const pixels = (from) => {
        context.drawImage(from, 0, 0);
        return context.getImageData(0, 0, canvas.width, canvas.height);
      };
      const before = pixels(images.get("original")).data;
      const after = pixels(image);
      const by = Number(factor.value);
      for (let i = 0; i < before.length; i += 4) {
        for (let c = i; c < i + 3; c += 1) after.data[c] = 128 + by * (after.data[c] - before[c]);
      }
      context.putImageData(after, 0, 0);
    }

    const near = new Set();
    const watch = new IntersectionObserver(
      (entries) => {
        for (const entry of entries) {
          const frame = frames.find((one) => one.tile === entry.target);
          if (!entry.isIntersecting) near.delete(frame);
          else near.add(frame);
          if (entry.isIntersecting && view.value === "difference") difference(frame);
        }
      },
      { rootMargin: "600px" },
    );
    frames.forEach((frame) => watch.observe(frame.tile));

    function look() {
      const differs = view.value === "difference";
      find(".when-difference").hidden = !differs;
      side.closest("label").hidden = differs;
      for (const frame of frames) {
        frame.canvas.hidden = !differs;
        frame.wipe.hidden = differs;
        frame.edge.hidden = differs;
      }
      find("#factor-says").textContent = `×${factor.value}`;
      if (differs) near.forEach(difference);
    }

    function scale() {
      const times = Number(zoom.value);
      for (const row of all(".tiles")) {
        row.classList.toggle("scaled", times > 0);
        for (const tile of all(".tile", row)) {
          const wide = Number(find("img", tile).getAttribute("width")) * times;
          tile.style.width = times > 0 ? `${wide}px` : "";
        }
      }
    }

    side.addEventListener("change", compare);
    view.addEventListener("change", look);
    factor.addEventListener("input", look);
    zoom.addEventListener("change", scale);
    addEventListener("beforeprint", () => view.value === "difference" && frames.forEach(difference));
    compare();
    look();
  }

  function printing() {
    let opened = [];
    addEventListener("beforeprint", () => {
      opened = all("details:not([open])");
      opened.forEach((one) => (one.open = true));
    });
    addEventListener("afterprint", () => opened.forEach((one) => (one.open = false)));
  }

  contents();
  all("table.sortable").forEach(sortable);
  if (find("#plot")) {
    chart();
    pictures();
    tiles();
  }
  printing();
})();
