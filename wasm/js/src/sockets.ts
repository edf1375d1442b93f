import type { SocketFactory } from "#platform";

/** The sockets of a wallet, so that they can be closed when nobody is left who would. */
export class Sockets {
  readonly #make: SocketFactory;
  readonly #open = new Set<WebSocket>();

  constructor(make: SocketFactory | undefined) {
    this.#make = make ?? ((url, protocol) => new WebSocket(url, protocol));
  }

  /** Opens one. */
  readonly open: SocketFactory = (url, protocol) => {
    const socket = this.#make(url, protocol);
    this.#open.add(socket);
    socket.addEventListener("close", () => this.#open.delete(socket));
    return socket;
  };

  /** Closes all. */
  close(): void {
    for (const socket of this.#open) socket.close();
    this.#open.clear();
  }
}
