// "Freeze it yourself": the drawing is the control, and the counts come from the model's file.

import { byId, choices, element, loadTensors, start, whole } from "./page.js";
import { COURSE_PLANS, bytes, code, count, takes, trainable } from "./plans.js";

const BYTES_IN_WORDS = { weights: "weights", gradients: "gradients", optimizer: "AdamW's moments" };

/** One part of the drawing: an SVG group, and the names of its parameters. */
class Part {
  constructor(group, weights) {
    this.group = group;
    this.selector = group.dataset.part;
    this.label = group.dataset.label;
    this.foot = Number(group.dataset.foot); // where its branch leaves the stream in the drawing
    this.names = Object.keys(weights).filter((name) => takes(this.selector, name));
    this.size = count(this.names, weights);
  }

  /** "trains", "frozen" or "mixed". */
  state(training) {
    const n = this.names.filter((name) => training.has(name)).length;
    if (n === 0) return "frozen";
    return n === this.names.length ? "trains" : "mixed";
  }

  show(training) {
    const state = this.state(training);
    this.group.classList.toggle("frozen", state === "frozen");
    this.group.classList.toggle("mixed", state === "mixed");
    this.group.setAttribute("aria-checked", { trains: "true", frozen: "false", mixed: "mixed" }[state]);
  }
}

/** Selectors of what is frozen, as short as may be: all blocks together where they agree. */
function selectors(parts, training) {
  const frozen = parts.filter((part) => part.state(training) === "frozen").map((part) => part.selector);
  const all = parts.map((part) => part.selector);
  const merged = new Set(frozen);
  const merge = (members, selector) => {
    if (!members.every((member) => merged.has(member))) return;
    members.forEach((member) => merged.delete(member));
    merged.add(selector);
  };
  for (const word of ["attention", "mlp"]) merge(all.filter((s) => s.startsWith(`${word}@`)), word);
  merge(all.filter((s) => s.includes(".ln_")), "norms");
  merge(["token_embedding", "position_embedding"], "embeddings");
  return [...merged];
}

await start(async () => {
  const weights = await loadTensors("model.safetensors");
  const nParameters = count(Object.keys(weights), weights);
  const parts = [...document.querySelectorAll(".part")].map((group) => new Part(group, weights));
  let training = trainable(COURSE_PLANS[0], weights); // names of the parameters that train

  function toggle(part) {
    const state = part.state(training);
    for (const name of part.names) state === "trains" ? training.delete(name) : training.add(name);
    show();
  }

  for (const part of parts) {
    part.group.setAttribute("role", "checkbox");
    part.group.setAttribute("tabindex", "0");
    part.group.setAttribute("aria-label", `Train ${part.label}: ${whole(part.size)} weights`);
    part.group.addEventListener("click", () => toggle(part));
    part.group.addEventListener("keydown", (event) => {
      if (event.key !== " " && event.key !== "Enter") return;
      event.preventDefault();
      toggle(part);
    });
  }

  const options = COURSE_PLANS.map(({ name, title }) => ({ value: name, label: title }));
  const press = choices(byId("plans"), options, (name) => {
    training = trainable(COURSE_PLANS.find((plan) => plan.name === name), weights);
    show();
  });

  /** The course's plan that trains exactly what trains now, if there is one. */
  function namedPlan() {
    return COURSE_PLANS.find((plan) => trainable(plan, weights).symmetricDifference(training).size === 0);
  }

  function showBytes(nTrainable) {
    const now = bytes(nTrainable, nParameters);
    const full = bytes(nParameters, nParameters);
    const megabytes = (n) => `${(n / 1e6).toFixed(1)} MB`;
    const sum = (parts) => Object.values(parts).reduce((a, b) => a + b);
    const rows = Object.keys(now).map((kind) => {
      const meter = element("div", { class: `meter ${kind}`, style: `width: ${(100 * now[kind]) / full.optimizer}%` });
      return element("tr", {}, element("th", { scope: "row" }, BYTES_IN_WORDS[kind], meter),
        element("td", {}, megabytes(now[kind])), element("td", {}, megabytes(full[kind])));
    });
    const total = element("tr", {}, element("th", { scope: "row" }, element("b", {}, "together")),
      element("td", {}, element("b", {}, megabytes(sum(now)))), element("td", {}, megabytes(sum(full))));
    byId("glance-bytes").textContent = `· ${megabytes(sum(now))} of ${megabytes(sum(full))}`;
    byId("bytes").replaceChildren(...rows, total);
  }

  function showReach() {
    const trained = parts.filter((part) => part.state(training) !== "frozen");
    const gradient = document.querySelector(".gradient");
    if (trained.length === 0) {
      gradient.setAttribute("d", "");
      byId("reach").textContent = "Nothing trains. Switch on at least one part.";
      return;
    }
    const lowest = trained.reduce((a, b) => (b.foot > a.foot ? b : a));
    gradient.setAttribute("d", `M58 38H34V${lowest.foot}`);
    byId("reach").textContent = `The gradient must go back from the loss as far as this part: ${lowest.label}. ` +
      (lowest.foot > 500 ? "That is through the whole model." : "What lies below it needs no backward pass.");
  }

  function showCode(plan) {
    const isMixed = parts.some((part) => part.state(training) === "mixed");
    if (plan) byId("code").textContent = code(plan);
    else if (training.size === 0) byId("code").textContent = "FreezePlan refuses: this plan trains nothing.";
    else if (isMixed) byId("code").textContent = "FreezePlan.only(…) with one name:… selector for each tensor";
    else byId("code").textContent = code({ way: "freeze", selectors: selectors(parts, training) });
  }

  function show() {
    const nTrainable = count(training, weights);
    for (const part of parts) part.show(training);
    document.querySelector(".tied").classList.toggle("frozen", !training.has("transformer.wte.weight"));
    const share = `${((100 * nTrainable) / nParameters).toFixed(1)}%`;
    byId("share").textContent = share;
    byId("glance-share").textContent = share;
    byId("counts").textContent = `${whole(nTrainable)} of ${whole(nParameters)} weights train, ` +
      `${whole(nParameters - nTrainable)} are frozen.`;
    const plan = namedPlan();
    press(plan?.name);
    showBytes(nTrainable);
    showReach();
    showCode(plan);
  }

  training = trainable(COURSE_PLANS.find((plan) => plan.name === "attention+embeddings"), weights);
  show();
});
