// Loss and forgetting of a model on a few passages, in nats per token, as in the course's lesson on loss.

import { softmax } from "./model.js";

const BREATH = 8; // tokens between two looks at what the reader does

/** Give the page a moment; true where the work is no longer wanted. */
export async function isStale(isWanted) {
  await new Promise((resolve) => setTimeout(resolve, 0));
  return !isWanted();
}

/** Probabilities of the next token after each token of a passage but the last; null where no longer wanted. */
async function predictions(model, ids, isWanted) {
  model.clear();
  const found = [];
  for (const id of ids.slice(0, -1)) {
    found.push(softmax(model.read(id)));
    if (found.length % BREATH === 0 && (await isStale(isWanted))) return null;
  }
  return found;
}

const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

/** KL divergence from p to q in nats: what is lost by believing q where p is true. */
export function divergence(p, q) {
  return sum(Array.from(p, (share, i) => (share > 0 ? share * Math.log(share / q[i]) : 0)));
}

/** What a model is measured on: passages that it never saw, and passages that the base wrote. */
export class Ruler {
  /** unseen, written: arrays of token ids. base: the base model, which is asked once. */
  constructor(base, unseen, written) {
    this.base = base;
    this.unseen = unseen;
    this.written = written;
    this.ofBase = null; // the base's probabilities on what it wrote
  }

  /** {loss, forgetting} of a model, or null where it is no longer wanted. */
  async measure(model, isWanted) {
    this.ofBase ??= await this.#onWritten(this.base, isWanted);
    const onUnseen = await this.#each(model, this.unseen, isWanted);
    const onWritten = this.ofBase && onUnseen && (await this.#onWritten(model, isWanted));
    if (!onWritten) return null;
    const losses = onUnseen.flatMap((rows, i) => rows.map((row, t) => -Math.log(row[this.unseen[i][t + 1]])));
    const divergences = onWritten.map((row, i) => divergence(this.ofBase[i], row));
    return { loss: sum(losses) / losses.length, forgetting: sum(divergences) / divergences.length };
  }

  /** How many tokens are predicted: {unseen, written}. */
  sizes() {
    const predicted = (passages) => sum(passages.map((ids) => ids.length - 1));
    return { unseen: predicted(this.unseen), written: predicted(this.written) };
  }

  async #onWritten(model, isWanted) {
    return (await this.#each(model, this.written, isWanted))?.flat() ?? null;
  }

  async #each(model, passages, isWanted) {
    const found = [];
    for (const ids of passages) {
      const rows = await predictions(model, ids, isWanted);
      if (!rows) return null;
      found.push(rows);
    }
    return found;
  }
}
