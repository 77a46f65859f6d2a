// Byte-level BPE: text to token ids and back, as the miniature's tokenizer.json says.
//
// Every byte is a letter of the alphabet below, so no text is unknown. Pairs are merged in the order in
// which they were learned, within one word at a time.

// A word: a short ending such as 's, or letters, digits or signs with a blank before them, or blanks (GPT-2's rule).
// Written \p{White_Space}, because JavaScript's \s is not the tokenizer's.
const WORD = new RegExp(
  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\p{White_Space}\\p{L}\\p{N}]+" +
    "|\\p{White_Space}+(?!\\P{White_Space})|\\p{White_Space}+",
  "gu",
);

/** The 256 bytes as visible letters: a printable byte is itself, the others follow from U+0100 on (GPT-2). */
function alphabet() {
  const letters = [];
  let next = 256;
  for (let byte = 0; byte < 256; byte++) {
    const isPrintable = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
    letters.push(String.fromCharCode(isPrintable ? byte : next++));
  }
  return letters;
}

export class Tokenizer {
  /** json: tokenizer.json. */
  constructor(json) {
    this.letters = alphabet(); // byte to letter
    this.bytes = new Map(this.letters.map((letter, byte) => [letter, byte]));
    this.ids = json.model.vocab; // token to id
    this.tokens = []; // id to token
    for (const [token, id] of Object.entries(this.ids)) this.tokens[id] = token;
    this.ranks = new Map(json.model.merges.map((pair, rank) => [pair.join(" "), rank]));
    this.special = new Map(json.added_tokens.map((added) => [added.content, added.id]));
  }

  /** Token ids of a text. A special token such as <|endoftext|> is one id. */
  encode(text) {
    const ids = [];
    for (const part of this.#parts(text)) {
      if (this.special.has(part)) ids.push(this.special.get(part));
      else for (const [word] of part.matchAll(WORD)) ids.push(...this.#merged(word).map((token) => this.ids[token]));
    }
    return ids;
  }

  /** The text of token ids; what is no whole character becomes U+FFFD. Special tokens are left out. */
  decode(ids) {
    const shown = ids.filter((id) => ![...this.special.values()].includes(id));
    const bytes = shown.flatMap((id) => [...this.tokens[id]].map((letter) => this.bytes.get(letter)));
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(new Uint8Array(bytes));
  }

  /** A text cut at its special tokens, which stay as parts of their own. */
  #parts(text) {
    const names = [...this.special.keys()].map((name) => name.replace(/[|\\{}()[\]^$+*?.]/g, "\\$&"));
    return text.split(new RegExp(`(${names.join("|")})`));
  }

  /** A word's letters, merged pair by pair: always the pair that was learned first. */
  #merged(word) {
    const parts = [...new TextEncoder().encode(word)].map((byte) => this.letters[byte]);
    for (;;) {
      let at = -1;
      let best = Infinity;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
        if (rank < best) [best, at] = [rank, i];
      }
      if (at < 0) return parts;
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
  }
}
