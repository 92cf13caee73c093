// One websocket to the server: says who we are, confirms what was handled, and comes back after every loss.
// Nothing is sent to a page that does not confirm, so a sleeping tab costs nothing and wakes up to the newest.

const TOKEN_PLACE = "acq-isl-token";
const RETRY_MS = [300, 600, 1200, 2500, 5000];

/** The token of the address, which stays in this tab and leaves the address line. */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem(TOKEN_PLACE, given);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(TOKEN_PLACE) || "";
}

export class Connection {
  /** handlers: {packet(message, jpegs), role(role), link(state, text), answer(answer)} */
  constructor(token, handlers) {
    this.token = token;
    this.handlers = handlers;
    this.tries = 0;
    this.commands = 0;
    this.finished = false;
    this.timer = 0;
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.wake());
    addEventListener("online", () => this.wake());
    this.open();
  }

  open() {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/feed`);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.frames = 0;
    let queue = Promise.resolve();
    socket.onopen = () => socket.send(JSON.stringify({ type: "HELLO", token: this.token }));
    socket.onmessage = (event) => {
      if (typeof event.data === "string") return this.receive(JSON.parse(event.data));
      // One after the other, and confirmed when drawn: that is what keeps us at the newest.
      queue = queue.then(() => this.unpack(event.data)).catch((error) => console.error(error)).then(() => {
        this.frames += 1;
        if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ type: "SEEN", frames: this.frames }));
      });
    };
    socket.onclose = (event) => this.closed(event);
  }

  receive(answer) {
    if (answer.type === "WELCOME") {
      this.tries = 0;
      this.handlers.role(answer.role);
      this.handlers.link("open", "");
    } else if (answer.type === "ANSWER") {
      this.handlers.answer(answer);
    }
  }

  async unpack(buffer) {
    const length = new DataView(buffer).getUint32(0, true);
    const message = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    let start = 4 + length;
    const jpegs = message.jpegs.map((size) => {
      const jpeg = new Uint8Array(buffer, start, size);
      start += size;
      return jpeg;
    });
    await this.handlers.packet(message, jpegs);
  }

  closed(event) {
    if ([4401, 4403].includes(event.code)) {
      sessionStorage.removeItem(TOKEN_PLACE);
      this.finished = true;
      this.handlers.link("refused", event.reason || "the server does not let this page in");
      return;
    }
    this.handlers.link("lost", event.reason || "the page's server does not answer; trying again");
    this.timer = setTimeout(() => this.open(), RETRY_MS[Math.min(this.tries++, RETRY_MS.length - 1)]);
  }

  wake() {
    if (this.finished || !this.socket || this.socket.readyState !== WebSocket.CLOSED) return;
    clearTimeout(this.timer);
    this.tries = 0;
    this.open();
  }

  /** Give the run a command; false if there is nobody to give it to. */
  send(command) {
    if (!this.socket || this.socket.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify({ type: "ORDER", id: ++this.commands, order: command }));
    return true;
  }
}
