// What is known of the run: the newest message of each kind and field. No drawing here.

const MAX_PICTURES = 160;
const MAX_DECISIONS = 500;
const LEAST_TOP = 26; // a tenth of what a label can be

export const fieldId = (key) => `${key.time}/${key.position}`;

/** The value 0-255 that 0.5 % of a picture exceed. */
function brightest({ data }) {
  const counts = new Uint32Array(256);
  for (let i = 0; i < data.length; i += 4) counts[data[i]] += 1;
  let above = data.length / 4 / 200, v = 255;
  while (v > 0 && (above -= counts[v]) > 0) v -= 1;
  return v;
}

export class Run {
  constructor() {
    this.clear("");
  }

  clear(id) {
    this.id = id;
    this.plan = null;
    this.status = null;
    this.fields = new Map();
    this.decisions = new Map();
    this.curves = new Map();
    this.curvesStamp = 0;
    this.newest = null;
    this.anyPredicted = false;
    this.statusSeq = -1;
    this.statusAt = 0;
    this.range = null;
    this.tops = new Map();
  }

  /** Take a message with its decoded pictures; returns what changed: a field, or null. */
  take(message, pictures) {
    const { run, seq, event } = message;
    if (run !== this.id) this.clear(run);
    switch (event.kind) {
      case "run_started":
        this.plan = event;
        for (const planned of event.fields) this.field(planned.key).planned = planned;
        return null;
      case "run_status":
        if (seq > this.statusSeq) {
          this.status = event;
          this.statusSeq = seq;
        }
        this.statusAt = performance.now();
        return null;
      case "decided":
        this.decisions.set(seq, event);
        if (this.decisions.size > MAX_DECISIONS) this.decisions.delete(Math.min(...this.decisions.keys()));
        return null;
      case "curve_changed":
        this.curves.set(`${event.level}/${event.place}/${event.name}`, event);
        this.curvesStamp += 1;
        return null;
      case "seen":
      case "predicted":
      case "not_predicted":
      case "field_failed":
      case "field_ranked":
        return this.learn(this.field(event.key), event, seq, pictures);
      // The status says what these change; the feed does not send them.
      case "step":
      case "time_point_began":
      case "field_imaged":
      case "fields_ranked":
      case "progress":
      case "state_changed":
      case "run_ended":
        return null;
      default:
        throw new Error(`an event of an unknown kind: ${event.kind}`);
    }
  }

  learn(field, event, seq, pictures) {
    switch (event.kind) {
      case "seen":
        this.see(field, event, seq, pictures[0]);
        break;
      case "predicted":
        if (field.predicted && field.predicted.seq > seq) break;
        field.predicted = { event, seq, means: pictures.slice(0, -1), doubt: pictures.at(-1) };
        field.refused = null;
        this.anyPredicted = true;
        this.rescale(field.predicted);
        this.touch(field, seq);
        break;
      case "not_predicted":
        field.refused = event;
        break;
      case "field_ranked":
        field.ranked = event;
        field.rankedSeq = seq;
        break;
      case "field_failed":
        field.failed = event;
        break;
    }
    field.stamp += 1;
    this.forget();
    return field;
  }

  /** One scale of each label for all fields, up to the brightest there was; what is hardly there is not blown up. */
  rescale({ event, means }) {
    event.labels.forEach((name, n) => {
      const known = this.tops.get(name) ?? 0;
      const top = Math.max(brightest(means[n]), LEAST_TOP);
      if (top <= known * 1.1) return;
      this.tops.set(name, top);
      for (const field of this.fields.values()) field.stamp += 1;
    });
  }

  see(field, event, seq, picture) {
    const plane = { event, picture };
    if (event.predict || !field.planned) {
      field.light = plane;
      // Once there are predictions, they are what one follows; else the picture would come and go.
      if (!this.anyPredicted || !field.planned) this.touch(field, seq);
      // One range for all fields, so that the map has no seams.
      const range = this.range;
      this.range = range ? [Math.min(range[0], event.low), Math.max(range[1], event.high)] : [event.low, event.high];
    } else {
      field.fluorescence.set(event.key.channel, plane);
      this.touch(field, seq);
    }
  }

  touch(field, seq) {
    field.seq = Math.max(field.seq, seq);
    if (!this.newest || field.seq >= this.newest.seq) this.newest = field;
  }

  field(key) {
    const id = fieldId(key);
    if (!this.fields.has(id)) {
      this.fields.set(id, {
        id, key, planned: null, light: null, predicted: null, refused: null, failed: null, ranked: null, rankedSeq: 0,
        fluorescence: new Map(), seq: 0, stamp: 0, thumb: null,
      });
    }
    return this.fields.get(id);
  }

  /** Large pictures of fields long past are let go; their thumbnails stay on the map. */
  forget() {
    const holding = [...this.fields.values()].filter((field) => field.light || field.predicted);
    if (holding.length <= MAX_PICTURES) return;
    holding.sort((a, b) => a.seq - b.seq);
    const oldest = holding[0];
    oldest.light = oldest.predicted = null;
    oldest.fluorescence.clear();
  }

  /** Whether there is more than one time point. */
  get several() {
    return Boolean(this.status?.time_point && this.status.time_point.total > 1);
  }

  /** What a field is called: with its time point where there are several. */
  place(key) {
    return this.several ? `${key.position}, time ${key.time + 1}` : key.position;
  }

  get labels() {
    return this.plan ? this.plan.labels : [];
  }
}
