// The whole miniature: a GPT-Neo that reads and writes in this page. No library, no server.
//
//   const model = new Model(readSafetensors(bytes), config);
//   const logits = model.read(tokenId);             // one token after another; the model remembers the others
//
// Sizes: d = width (192), h = heads (6), n = d / h, T = positions (256), V = vocabulary (4,096).

// --- the weights' file -------------------------------------------------------------

/** A safetensors file as {name: {shape, data}}. Data is Float32Array, or Int8Array where the file has int8. */
export function readSafetensors(buffer) {
  const headerBytes = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, headerBytes)));
  delete header.__metadata__;
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [begin, end] }] of Object.entries(header)) {
    const read = READERS[dtype];
    if (!read) throw new Error(`${name} is stored as ${dtype}; this page reads ${Object.keys(READERS).join(", ")}.`);
    const start = 8 + headerBytes;
    tensors[name] = { shape, data: read(buffer.slice(start + begin, start + end)) };
  }
  return tensors;
}

const READERS = {
  F32: (bytes) => new Float32Array(bytes),
  F16: (bytes) => Float32Array.from(new Uint16Array(bytes), float16),
  I8: (bytes) => new Int8Array(bytes),
};

/** 16 bits as a number: 1 sign bit, 5 bits of exponent, 10 bits of fraction (IEEE 754). */
function float16(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = (bits & 1023) / 1024;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction) : sign * 2 ** -14 * fraction;
}

// --- the model ---------------------------------------------------------------------

export class Model {
  /** weights: {name: {shape, data}}; config: the model's config.json. */
  constructor(weights, config) {
    this.weights = weights;
    this.config = config;
    this.width = config.hidden_size;
    this.positions = config.max_position_embeddings;
    this.clear();
  }

  /** Forget what was read: empty keys and values, one (T, d) of each for every block. */
  clear() {
    const empty = () => Array.from({ length: this.config.num_layers }, () => new Float32Array(this.positions * this.width));
    this.keys = empty();
    this.values = empty();
    this.time = 0; // tokens read so far
  }

  data(name) {
    return this.weights[`transformer.${name}`].data;
  }

  /** Read one more token. Returns the logits of the next one: (V,). */
  read(token) {
    if (this.time === this.positions) throw new Error(`The model has ${this.positions} positions, and all are used.`);
    const table = this.data("wte.weight"); // (V, d), also the head: input and output share it
    const position = this.data("wpe.weight"); // (T, d)
    const stream = new Float32Array(this.width);
    for (let i = 0; i < this.width; i++) {
      stream[i] = table[token * this.width + i] + position[this.time * this.width + i];
    }
    for (let block = 0; block < this.config.num_layers; block++) {
      add(stream, this.attention(block, this.norm(`h.${block}.ln_1`, stream))); // the first skip
      add(stream, this.mlp(block, this.norm(`h.${block}.ln_2`, stream))); // the second skip
    }
    this.time += 1;
    return product(table, this.norm("ln_f", stream)); // (V, d) times (d,)
  }

  norm(name, x) {
    return layerNorm(x, this.data(`${name}.weight`), this.data(`${name}.bias`), this.config.layer_norm_epsilon);
  }

  /** Each head looks back, and mixes the values that it finds: (d,) to (d,). */
  attention(block, x) {
    const name = `h.${block}.attn.attention`;
    const query = product(this.data(`${name}.q_proj.weight`), x); // (d,) = (h, n)
    const keys = this.keys[block]; // (T, d)
    const values = this.values[block];
    keys.set(product(this.data(`${name}.k_proj.weight`), x), this.time * this.width);
    values.set(product(this.data(`${name}.v_proj.weight`), x), this.time * this.width);
    const isLocal = this.config.attention_layers[block] === "local";
    const first = isLocal ? Math.max(0, this.time - this.config.window_size + 1) : 0; // the oldest token in view
    const mixed = new Float32Array(this.width);
    const size = this.width / this.config.num_heads;
    for (let start = 0; start < this.width; start += size) {
      const weights = this.look(query, keys, first, start, size);
      for (let t = first; t <= this.time; t++) {
        for (let i = start; i < start + size; i++) mixed[i] += weights[t - first] * values[t * this.width + i];
      }
    }
    return product(this.data(`${name}.out_proj.weight`), mixed, this.data(`${name}.out_proj.bias`));
  }

  /** One head's weights over the tokens in view; they sum to 1. GPT-Neo does not divide by the root of n. */
  look(query, keys, first, start, size) {
    const scores = new Float32Array(this.time + 1 - first);
    for (let t = first; t <= this.time; t++) {
      let score = 0;
      for (let i = start; i < start + size; i++) score += query[i] * keys[t * this.width + i];
      scores[t - first] = score;
    }
    return softmax(scores);
  }

  mlp(block, x) {
    const name = `h.${block}.mlp`;
    const inner = product(this.data(`${name}.c_fc.weight`), x, this.data(`${name}.c_fc.bias`)); // (4d,)
    return product(this.data(`${name}.c_proj.weight`), inner.map(gelu), this.data(`${name}.c_proj.bias`)); // (d,)
  }
}

// --- arithmetic --------------------------------------------------------------------

/** matrix (rows, columns) times x (columns,), plus a bias (rows,) if there is one. The number of rows is a multiple of 4. */
function product(matrix, x, bias) {
  const columns = x.length;
  const out = bias ? bias.slice() : new Float32Array(matrix.length / columns);
  for (let row = 0; row < out.length; row += 4) {
    const first = row * columns;
    const second = first + columns;
    const third = second + columns;
    const fourth = third + columns;
    let a = 0; // four rows side by side: each number of x is read once for them all
    let b = 0;
    let c = 0;
    let d = 0;
    for (let i = 0; i < columns; i++) {
      const value = x[i];
      a += matrix[first + i] * value;
      b += matrix[second + i] * value;
      c += matrix[third + i] * value;
      d += matrix[fourth + i] * value;
    }
    out[row] += a;
    out[row + 1] += b;
    out[row + 2] += c;
    out[row + 3] += d;
  }
  return out;
}

function add(stream, change) {
  for (let i = 0; i < stream.length; i++) stream[i] += change[i];
}

function layerNorm(x, weight, bias, epsilon) {
  const mean = x.reduce((sum, v) => sum + v, 0) / x.length;
  const variance = x.reduce((sum, v) => sum + (v - mean) ** 2, 0) / x.length;
  const scale = 1 / Math.sqrt(variance + epsilon);
  return x.map((v, i) => (v - mean) * scale * weight[i] + bias[i]);
}

function gelu(x) {
  return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x)));
}

/** Numbers as shares that sum to 1. A temperature below 1 makes the likely likelier. */
export function softmax(logits, temperature = 1) {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const shares = logits.map((v) => Math.exp((v - largest) / temperature));
  const total = shares.reduce((sum, v) => sum + v, 0);
  return shares.map((v) => v / total);
}

// --- writing -----------------------------------------------------------------------

/** The token where a share of all probability, 0 to 1, is passed. */
export function choose(probabilities, share) {
  let passed = 0;
  for (let token = 0; token < probabilities.length; token++) {
    passed += probabilities[token];
    if (passed > share) return token;
  }
  return probabilities.length - 1;
}

/** A source of numbers from 0 to 1, the same ones for the same seed (mulberry32 by Tommy Ettinger). */
export function seeded(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Go on with a prompt, token by token: yields {token, logits}, the logits being those it was drawn from. */
export function* write(model, prompt, { count, seed = 0, temperature = 0.8 }) {
  const random = seeded(seed);
  model.clear();
  let logits;
  for (const token of prompt) logits = model.read(token);
  for (let i = 0; i < count; i++) {
    const token = choose(softmax(logits, temperature), random());
    yield { token, logits };
    if (model.time === model.positions) return;
    logits = model.read(token);
  }
}
