// The data rate of one camera over the last minute: a curve, its scale, and the same in words.

const SPAN_MS = 60_000;
const GAP_MS = 5000; // reports come once a second; between two that are further apart nothing is known
const REDRAW_MS = 1000; // the curve moves on also while nothing is reported
const WIDTH = 240;
const HEIGHT = 40;
const STEPS = [1, 1.5, 2, 3, 4, 5, 6, 8, 10];

// The end of a scale for values up to this: a round number that is not much larger.
function roundTop(most) {
  const unit = 10 ** Math.floor(Math.log10(Math.max(most, 1)));
  return unit * STEPS.find((step) => step * unit >= most);
}

export class RateCurve {
  constructor(root) {
    this.part = (selector) => root.querySelector(selector);
    this.rates = []; // {at, rate}: ms of the viewer's clock, kbit/s
    this.drawn = -Infinity;
  }

  // What the viewer knows from before this page looked on.
  begin(rates) {
    const older = rates.map(([at, rate]) => ({ at, rate }));
    const newest = older.at(-1)?.at ?? -Infinity;
    this.rates = [...older, ...this.rates.filter(({ at }) => at > newest)];
    this.drawn = -Infinity;
  }

  add(at, rate) {
    if (at == null || rate == null) return;
    this.rates = this.rates.filter((earlier) => earlier.at < at); // clocks may be set back
    this.rates.push({ at, rate });
    this.drawn = -Infinity;
  }

  tick(now) {
    if (Math.abs(now - this.drawn) < REDRAW_MS) return;
    this.drawn = now;
    this.rates = this.rates.filter(({ at }) => at >= now - SPAN_MS - GAP_MS);
    this.draw(now);
  }

  draw(now) {
    const shown = this.rates.filter(({ at }) => at >= now - SPAN_MS);
    const values = shown.map(({ rate }) => rate);
    const top = roundTop(Math.max(0, ...values));
    const place = ({ at, rate }) => [
      Math.min(WIDTH, ((at - now + SPAN_MS) / SPAN_MS) * WIDTH).toFixed(1),
      (HEIGHT - (rate / top) * HEIGHT).toFixed(1),
    ];
    const runs = this.runs(shown).map((run) => run.map(place));
    const line = (run) => run.map((point) => point.join(" ")).join("L");
    this.part(".line").setAttribute("d", runs.map((run) => `M${line(run)}`).join(""));
    this.part(".area").setAttribute("d", runs.map((run) => `M${run[0][0]} ${HEIGHT}L${line(run)}V${HEIGHT}Z`).join(""));
    this.part(".top").textContent = top;
    this.part("svg").setAttribute("aria-label", this.words(values));
  }

  // Reports that follow one another closely enough to be joined by a line.
  runs(rates) {
    const runs = [];
    rates.forEach((rate, i) => {
      if (i && rate.at - rates[i - 1].at <= GAP_MS) runs.at(-1).push(rate);
      else runs.push([rate]);
    });
    return runs;
  }

  words(values) {
    if (!values.length) return "Data rate over the last 60 seconds: nothing was reported";
    const [least, most, last] = [Math.min(...values), Math.max(...values), values.at(-1)].map(Math.round);
    return `Data rate over the last 60 seconds: ${least} to ${most} kbit/s, at last ${last}`;
  }
}
