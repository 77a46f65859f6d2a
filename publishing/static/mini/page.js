// What all living pages do: follow the site's light or dark, load the model, and say so when they cannot.

import { Model, readSafetensors } from "./model.js";
import { Tokenizer } from "./tokenizer.js";

const THEMES = { auto: "light dark", light: "light", dark: "dark" };

/** The button that goes through auto, light and dark; the choice is the one of the site's other pages. */
function followTheme() {
  const button = document.querySelector(".theme");
  const show = (theme) => {
    document.documentElement.style.colorScheme = THEMES[theme];
    button.textContent = `Colours: ${theme}`;
  };
  const kept = () => (localStorage.getItem("theme") in THEMES ? localStorage.getItem("theme") : "auto");
  button.addEventListener("click", () => {
    const names = Object.keys(THEMES);
    localStorage.setItem("theme", names[(names.indexOf(kept()) + 1) % names.length]);
    show(kept());
  });
  show(kept());
}

/** Start a page: the still picture goes, what runs comes. An error is shown in words. */
export async function start(run) {
  followTheme();
  document.documentElement.classList.toggle("inside", window.parent !== window); // a lesson shows this page
  const status = document.getElementById("status");
  try {
    await run();
    document.body.classList.add("runs");
    status.textContent = "";
  } catch (error) {
    status.textContent = `This page could not start: ${error.message}`;
    throw error;
  }
}

async function loaded(name) {
  const answer = await fetch(new URL(`data/${name}`, import.meta.url));
  if (!answer.ok) throw new Error(`${name} did not load (${answer.status}). Build the site again: course site.`);
  return answer;
}

export async function loadJson(name) {
  return (await loaded(name)).json();
}

export async function loadTensors(name) {
  return readSafetensors(await (await loaded(name)).arrayBuffer());
}

/** The miniature's weights, config and tokenizer. */
export async function loadBase() {
  const [weights, config, json] = await Promise.all([
    loadTensors("model.safetensors"), loadJson("config.json"), loadJson("tokenizer.json")]);
  return { weights, config, model: new Model(weights, config), tokenizer: new Tokenizer(json) };
}

// --- small helps -------------------------------------------------------------------

export { choices, element, shape, whole } from "./draw.js"; // which the notebooks' widgets have too

export const byId = (id) => document.getElementById(id);
