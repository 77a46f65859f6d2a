// A line chart as SVG: round numbers at the axes, names at the lines' ends, no legend.

import { shape } from "./draw.js";

const WIDEST = 520;
const NAME = "600 14px"; // as in page.css and widgets.css
const MARGIN = { left: 52, right: 16, top: 30, bottom: 46 };

/** At most about six round numbers between two values. */
export function ticks({ low, high }) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(6)));
}

export class Chart {
  /** svg: the element to draw in. x and y: {label, low, high}. room: pixels from left to right. */
  constructor(svg, x, y, room = Math.min(WIDEST, window.innerWidth - 40)) {
    this.svg = svg;
    this.width = Math.max(300, room); // so that letters keep their size on a phone
    this.height = Math.min(360, this.width);
    svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    svg.replaceChildren();
    this.axes = { x, y };
    this.drawn = []; // places of all lines, which names keep clear of
    this.#grid();
  }

  x(value) {
    const { low, high } = this.axes.x;
    return MARGIN.left + ((value - low) / (high - low)) * (this.width - MARGIN.left - MARGIN.right);
  }

  y(value) {
    const { low, high } = this.axes.y;
    return this.height - MARGIN.bottom - ((value - low) / (high - low)) * (this.height - MARGIN.top - MARGIN.bottom);
  }

  /** The value under a pointer, from its place on the screen. */
  valueAt(clientX) {
    const { left, width } = this.svg.getBoundingClientRect();
    const share = (((clientX - left) / width) * this.width - MARGIN.left) / (this.width - MARGIN.left - MARGIN.right);
    return this.axes.x.low + share * (this.axes.x.high - this.axes.x.low);
  }

  add(tag, attributes, ...children) {
    const part = shape(tag, attributes, ...children);
    this.svg.append(part);
    return part;
  }

  /** points: [[x, y], …] in the axes' units. */
  line(points, colour, { width = 2.5, opacity = 1, dash = "" } = {}) {
    this.drawn.push(...points.map(([x, y]) => ({ x: this.x(x), y: this.y(y) })));
    const places = points.map(([x, y]) => `${this.x(x).toFixed(1)} ${this.y(y).toFixed(1)}`);
    const style = `stroke:${colour};stroke-width:${width};opacity:${opacity};stroke-dasharray:${dash || "none"}`;
    this.add("path", { d: `M${places.join("L")}`, style, "stroke-linejoin": "round" });
  }

  /** The ground between two lines. */
  band(lows, highs, colour) {
    const places = [...lows, ...highs.toReversed()].map(([x, y]) => `${this.x(x).toFixed(1)} ${this.y(y).toFixed(1)}`);
    if (places.length) this.add("path", { d: `M${places.join("L")}Z`, style: `fill:${colour};opacity:0.18` });
  }

  dot([x, y], colour, radius = 5) {
    return this.add("circle", { cx: this.x(x), cy: this.y(y), r: radius, style: `fill:${colour}` });
  }

  /** Names beside lines, near their ends, where they lie on nothing. labels: [{points, words, colour}]. */
  names(labels) {
    const pen = document.createElement("canvas").getContext("2d"); // knows how wide words are
    pen.font = `${NAME} ${getComputedStyle(document.body).fontFamily}`;
    const taken = [];
    for (const { points, words, colour } of labels) {
      const boxes = this.#candidates(points, pen.measureText(words).width);
      const covered = (box) => this.drawn.filter((place) => isIn(place, box)).length;
      const free = boxes.filter((box) => !taken.some((other) => overlap(box, other)));
      const box = (free.length ? free : boxes).reduce((a, b) => (covered(b) < covered(a) ? b : a));
      taken.push(box);
      this.add("text", { x: box.left + 3, y: box.bottom - 5, class: "name", style: `fill:${colour}` }, words);
    }
  }

  /** Boxes for a name of some width around the last third of a line, the nearest to its end first. */
  #candidates(points, width) {
    const boxes = [];
    for (const share of [1, 0.93, 0.86, 0.79, 0.72, 0.65]) {
      const [x, y] = points[Math.round(share * (points.length - 1))];
      for (const [right, down] of [[0, -9], [width + 6, -9], [width + 10, 9], [0, 27], [width + 6, 27], [width / 2, -16]]) {
        const left = within(this.x(x) + right - width - 6, MARGIN.left + 2, this.width - width - 8);
        const bottom = within(this.y(y) + down, MARGIN.top + 4, this.height - MARGIN.bottom - 2);
        boxes.push({ left, right: left + width + 6, top: bottom - 19, bottom });
      }
    }
    return boxes;
  }

  /** A dashed upright line. */
  level(value) {
    const x = this.x(value);
    this.add("line", { x1: x, x2: x, y1: MARGIN.top, y2: this.height - MARGIN.bottom, class: "level" });
  }

  #grid() {
    const { x, y } = this.axes;
    for (const value of ticks(y)) {
      const at = this.y(value);
      this.add("line", { x1: MARGIN.left, x2: this.width - MARGIN.right, y1: at, y2: at, class: "grid" });
      this.add("text", { x: MARGIN.left - 8, y: at + 4, "text-anchor": "end" }, String(value));
    }
    for (const value of ticks(x)) {
      this.add("text", { x: this.x(value), y: this.height - MARGIN.bottom + 19, "text-anchor": "middle" }, String(value));
    }
    this.add("text", { x: MARGIN.left, y: 16 }, y.label);
    this.add("text", { x: this.width - MARGIN.right, y: this.height - 6, "text-anchor": "end" }, x.label);
  }
}

const within = (value, low, high) => Math.min(high, Math.max(low, value));

const isIn = ({ x, y }, box) => x > box.left && x < box.right && y > box.top && y < box.bottom;

const overlap = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
