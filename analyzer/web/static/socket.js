// The live socket: messages in, wishes out, and coming back when it is lost.

const FIRST_WAIT_S = 0.5, LONGEST_WAIT_S = 5, LEAST_BETWEEN_MS = 100;
const LONGEST_SILENCE_S = 10; // the analysis says something twice a second
const now = () => performance.now() / 1000; // a clock that is never set

export const canUnpack = "DecompressionStream" in window;

async function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const packed = new Blob([new Uint8Array(buffer, 4 + length)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const pixels = new Uint16Array(await new Response(packed).arrayBuffer());
  if (pixels.length !== head.rows * head.columns) throw new Error("an image of another size than it says");
  return { head, pixels };
}

// `handlers` has a function for each kind of message. `connected` and `heardAt` (s of performance.now, null before) say how it stands.
export class Live {
  constructor(handlers) {
    this.handlers = handlers;
    this.connected = false;
    this.heardAt = null;
    this.triedAt = null;
    this.wish = null;
    this.sentAt = -Infinity; // ms of performance.now
    this.sent = "";
    this.timer = null;
    this.waiting = null;
    this.unpacking = false;
    this.wait_s = FIRST_WAIT_S;
    this.connect();
    setInterval(() => this.watch(), 1000);
  }

  connect() {
    const url = new URL("live", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = this.socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    this.triedAt = now();
    socket.onopen = () => {
      this.connected = true;
      this.wait_s = FIRST_WAIT_S;
      this.sent = "";
      this.send();
    };
    socket.onmessage = event => {
      this.heardAt = now();
      if (typeof event.data === "string") {
        const message = JSON.parse(event.data);
        this.handlers[message.kind]?.(message);
      } else this.take(event.data);
    };
    socket.onclose = () => this.lost();
  }

  lost() {
    this.connected = false;
    this.triedAt = null;
    setTimeout(() => this.connect(), 1e3 * this.wait_s);
    this.wait_s = Math.min(LONGEST_WAIT_S, 1.6 * this.wait_s);
  }

  // A connection whose other end has gone without a word looks open for minutes.
  watch() {
    if (this.triedAt == null || now() - Math.max(this.triedAt, this.heardAt ?? 0) < LONGEST_SILENCE_S) return;
    const socket = this.socket;
    socket.onopen = socket.onmessage = socket.onclose = null; // its close may be told much later
    socket.close();
    this.lost();
  }

  // Only the newest image waits while another is unpacked.
  async take(buffer) {
    if (!canUnpack) return;
    this.waiting = buffer;
    if (this.unpacking) return;
    this.unpacking = true;
    while (this.waiting) {
      const next = this.waiting;
      this.waiting = null;
      try {
        this.handlers.image(await unpack(next));
      } catch (error) {
        console.error(`image left out: ${error.message}`);
      }
    }
    this.unpacking = false;
  }

  // What images are wished for; sent at once, or a moment later where the last was just now.
  ask(wish) {
    this.wish = JSON.stringify(wish);
    if (this.timer) return;
    const wait = Math.max(0, this.sentAt + LEAST_BETWEEN_MS - performance.now());
    this.timer = setTimeout(() => this.send(), wait);
  }

  send() {
    clearTimeout(this.timer);
    this.timer = null;
    if (!this.wish || this.wish === this.sent || this.socket.readyState !== WebSocket.OPEN) return;
    this.socket.send(this.wish);
    this.sent = this.wish;
    this.sentAt = performance.now();
  }
}
