// The style mixer: one prompt, several models, the same dice. It marks where a text parts from the first model's.

import { ask, element, ground } from "./draw.js";

const COLOURS = ["var(--soft)", "light-dark(#00704f, #4fcaa3)", "light-dark(#a0457a, #e39ac3)", "light-dark(#7a5c00, #e6c055)"];

/** How many pieces two texts have in common at their beginning. */
export function common(pieces, others) {
  const at = pieces.findIndex((piece, i) => piece !== others[i]);
  return at < 0 ? pieces.length : at;
}

/** A number or a line of text, with its label. */
function field(words, type, value, more = {}) {
  const input = element("input", { type, required: "", ...more });
  input.value = value;
  return { input, label: element("label", { class: `field ${type === "text" ? "prompt" : ""}` }, words, input) };
}

function render({ model, el }) {
  const { names, most } = model.get("data");
  const { root, leave } = ground(model, el, "styles", "Style mixer");
  const choice = model.get("choice");

  const prompt = field("Prompt: every model goes on from here", "text", choice.prompt);
  const tokens = field("Tokens", "number", choice.n_tokens, { min: 1, max: most });
  const temperature = field("Temperature", "number", choice.temperature, { min: 0.1, max: 1.5, step: 0.1 });
  const seed = field("Seed", "number", choice.seed, { min: 0, max: 10000 });
  const write = element("button", {}, "Write");
  const dice = element("button", { type: "button" }, "Other dice");
  const form = element("form", { class: "controls" }, prompt.label, tokens.label, temperature.label, seed.label, write, dice);
  const columns = element("div", { class: "columns" });
  const said = element("p", { "aria-live": "polite" });
  root.append(form, columns, said);

  /** Enter in any field, or the button: every model writes. */
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    write.disabled = dice.disabled = true; // impatient clicks would wait in line
    said.textContent = "The models write…";
    ask(model, { prompt: prompt.input.value, n_tokens: Number(tokens.input.value),
      temperature: Number(temperature.input.value), seed: Number(seed.input.value), asked: Date.now() });
  });
  dice.addEventListener("click", () => {
    seed.input.value = Number(seed.input.value) + 1;
    form.requestSubmit();
  });

  function show() {
    const { prompt: begun, pieces, is_whole } = model.get("answer");
    const first = pieces[names[0]];
    const parted = names.map((name) => common(pieces[name], first));
    columns.replaceChildren(...names.map((name, i) => {
      const [same, own] = [pieces[name].slice(0, parted[i]).join(""), pieces[name].slice(parted[i]).join("")];
      const text = element("p", {}, element("i", {}, begun), i === 0 ? first.join("") : same);
      if (own) text.append(element("mark", {}, own));
      return element("div", { class: "column", style: `--writer: ${COLOURS[i % COLOURS.length]}` }, element("b", {}, name), text);
    }));
    if (is_whole) {
      done();
      said.replaceChildren(...names.slice(1).flatMap((name, i) => [element("b", {}, name), parted[i + 1] < first.length
        ? ` parts from ${names[0]} after ${parted[i + 1]} of ${first.length} tokens. ` : ` writes the same as ${names[0]}. `]));
    }
  }

  function done() {
    write.disabled = dice.disabled = false;
  }

  model.on("change:answer", show);
  model.on("change:problem", () => {
    if (!model.get("problem")) return;
    done();
    said.textContent = "";
  });
  show();
  return leave;
}

export default { render };
