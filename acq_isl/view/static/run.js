// What is known of the run: the newest message of each kind and field. No drawing here.

const MAX_PICTURES = 160;

export const fieldId = (key) => `${key.time}/${key.position}`;

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
    this.newest = null;
    this.anyPredicted = false;
    this.statusAt = 0;
    this.range = null;
  }

  /** Take a message with its decoded pictures; returns what changed: a field, or null. */
  take(header, pictures) {
    if (header.run !== this.id) this.clear(header.run);
    switch (header.type) {
      case "PLAN":
        this.plan = header;
        for (const one of header.fields) this.field(one.key).planned = one;
        return null;
      case "STATUS":
        if (!this.status || this.status.seq < header.seq) this.status = header;
        this.statusAt = performance.now();
        return null;
      case "DECIDED":
        this.decisions.set(header.seq, header);
        return null;
    }
    const field = this.field(header.key);
    switch (header.type) {
      case "LIGHT":
        this.light(field, header, pictures[0]);
        break;
      case "PREDICTED":
        if (field.predicted && field.predicted.header.seq > header.seq) break;
        field.predicted = { header, means: pictures.slice(0, -1), doubt: pictures.at(-1) };
        field.refused = null;
        this.anyPredicted = true;
        this.touch(field, header.seq);
        break;
      case "NOT_PREDICTED":
        field.refused = header;
        break;
      case "RANKED":
        field.ranked = header;
        break;
    }
    field.stamp += 1;
    this.forget();
    return field;
  }

  light(field, header, picture) {
    const kept = { header, picture };
    if (header.predict || !field.planned) {
      field.light = kept;
      // Once there are predictions, they are what one follows; else the picture would come and go.
      if (!this.anyPredicted || !field.planned) this.touch(field, header.seq);
      // One range for all fields, so that the map has no seams.
      const range = this.range;
      this.range = range ? [Math.min(range[0], header.low), Math.max(range[1], header.high)] : [header.low, header.high];
    } else {
      field.fluorescence.set(header.key.channel, kept);
      this.touch(field, header.seq);
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
        id, key, planned: null, light: null, predicted: null, refused: null, ranked: null,
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

  get labels() {
    return this.plan ? this.plan.labels : [];
  }
}
