// One plot of a latency of the last answers, with the limit of the circuit breaker. The scale is logarithmic, because the
// limit is often ten times the usual value.
import { h } from "../app/dom.js";
import { t } from "../app/i18n.js";
import { library } from "../app/scripts.js";
import { clock, duration, isBad } from "./format.js";

const HEIGHT = 200;
const STEPS = [1, 2, 5];

/** `value` and `limit`: fields of an answer, in milliseconds. */
export function latencyPlot({ title, value, limit }) {
  const figure = h("div", { class: "plot-canvas" });
  const note = h("p", { class: "plot-note" }, "");
  const element = h("figure", { class: "plot" }, h("figcaption", {}, title), figure, note);
  const resized = new ResizeObserver(() => plot?.setSize({ width: figure.clientWidth, height: HEIGHT }));
  let plot = null;
  let rows = [];
  let isClosed = false;

  async function draw(answers) {
    rows = answers.filter((answer) => answer[value] !== null);
    element.hidden = rows.length === 0;
    if (rows.length === 0) return;
    const uPlot = await library("/web/vendor/uplot/uplot.js", "uPlot");
    if (isClosed || rows.length === 0) return;
    plot?.destroy();
    plot = new uPlot(options(), columns(), figure);
    const canvas = figure.querySelector("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${title}. ${summary()}`);
    note.textContent = summary();
  }

  function columns() {
    const values = rows.map((answer) => Math.max(0.1, answer[value]));
    return [
      rows.map((_, number) => number),
      rows.map((answer) => answer[limit]),
      values,
      values.map((ms, number) => (isBad(rows[number]) ? ms : null)),
    ];
  }

  function summary() {
    const values = rows.map((answer) => answer[value]).sort((a, b) => a - b);
    const limits = rows.map((answer) => answer[limit]).filter((ms) => ms !== null);
    const text = t("live.plot.summary", {
      n: rows.length,
      median: duration(values[Math.floor(values.length / 2)]),
      longest: duration(values.at(-1)),
    });
    return limits.length === 0 ? text : `${text} ${t("live.plot.limit", { limit: limitsText(limits) })}`;
  }

  function options() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const axis = { stroke: colour("muted"), font: `12px ${style.getPropertyValue("--font")}`, grid: { stroke: colour("line"), width: 1 }, ticks: { show: false } };
    const accent = colour("accent");
    const isOneModel = rows.every((answer) => answer.model === rows[0].model); // else a line would connect different models
    const dot = (stroke, fill, size, width) => ({ show: true, stroke, fill, size, width });
    return {
      width: figure.clientWidth,
      height: HEIGHT,
      legend: { show: false },
      cursor: { y: false, points: { show: false }, drag: { x: false, y: false } },
      scales: { x: { time: false, range: (_, min, max) => [min - 0.5, max + 0.5] }, y: { distr: 3, range: decades } },
      axes: [
        { ...axis, grid: { show: false }, size: 26, space: 84, incrs: [1, 2, 5, 10, 20, 50, 100], values: (_, splits) => splits.map(timeOf) },
        { ...axis, size: 62, splits: (_, __, min, max) => ticks(min, max), filter: (_, splits) => splits, values: (_, splits) => splits.map(duration) },
      ],
      series: [
        {},
        { paths: () => null, points: { show: false } }, // drawn by `drawLimits`; here for the range of the scale
        { stroke: accent, width: isOneModel ? 1.5 : 0, points: dot(accent, accent, 6, 1) },
        { stroke: "transparent", width: 0, points: dot(colour("danger"), colour("page"), 10, 2.5) },
      ],
      hooks: {
        draw: [(u) => drawLimits(u, colour("warning"))],
        setCursor: [(u) => (note.textContent = rows[u.cursor.idx] ? describe(rows[u.cursor.idx]) : summary())],
      },
    };
  }

  /** A line as wide as one answer, for each answer that has a limit. */
  function drawLimits(u, colour) {
    u.ctx.save();
    u.ctx.strokeStyle = colour;
    u.ctx.lineWidth = 2 * devicePixelRatio;
    u.ctx.beginPath();
    u.data[1].forEach((ms, number) => {
      if (ms === null) return;
      const y = Math.round(u.valToPos(ms, "y", true));
      u.ctx.moveTo(u.valToPos(number - 0.5, "x", true), y);
      u.ctx.lineTo(u.valToPos(number + 0.5, "x", true), y);
    });
    u.ctx.stroke();
    u.ctx.restore();
  }

  function timeOf(number) {
    return Number.isInteger(number) && rows[number] ? clock(rows[number].at) : "";
  }

  function describe(answer) {
    const parts = [clock(answer.at), answer.model, duration(answer[value])];
    if (answer[limit] !== null) parts.push(t("live.plot.limit", { limit: duration(answer[limit]) }));
    if (answer.is_slow) parts.push(t("live.plot.slow"));
    return parts.join(" · ");
  }

  resized.observe(figure);
  return {
    element,
    draw,
    close() {
      isClosed = true;
      resized.disconnect();
      plot?.destroy();
    },
  };
}

function limitsText(limits) {
  const [least, most] = [duration(Math.min(...limits)), duration(Math.max(...limits))];
  return least === most ? least : t("live.plot.range", { least, most });
}

/** The range of the scale: at least from a half to twice the values. */
function decades(_, min, max) {
  if (min === null || max === null) return [1, 1000];
  return [min / 1.6, max * 1.6];
}

/** 1, 2, 5, 10, 20, ... in the range; only powers of ten if it is wide. */
function ticks(min, max) {
  const steps = max / min > 300 ? [1] : STEPS;
  const found = [];
  for (let power = Math.floor(Math.log10(min)); power <= Math.log10(max); power += 1) {
    found.push(...steps.map((step) => step * 10 ** power).filter((tick) => tick >= min && tick <= max));
  }
  return found;
}
