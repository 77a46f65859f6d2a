// What all drawings share: elements, a choice of buttons, the ground that a widget stands on, what it asks the kernel.

/** An HTML element with attributes and children (elements or text). */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
export function shape(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(part, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) part.setAttribute(name, value);
  part.append(...children);
  return part;
}

/** Buttons of which one is pressed. choose(value) is called with the value of a button that is clicked. */
export function choices(box, options, choose) {
  const press = (wanted) => {
    for (const button of box.children) button.setAttribute("aria-pressed", button.value === String(wanted));
  };
  for (const { value, label } of options) {
    const button = element("button", { type: "button", value, "aria-pressed": false }, label);
    button.addEventListener("click", () => {
      press(value);
      choose(value);
    });
    box.append(button);
  }
  return press;
}

export const whole = (n) => n.toLocaleString("en");

/** A list to choose from, with its label. choose(value) is called with the value that is chosen. */
export function list(words, options, value, choose) {
  const select = element("select", {}, ...options.map(({ value, label }) => element("option", { value }, label)));
  select.value = value;
  select.addEventListener("change", () => choose(select.value));
  return element("label", { class: "field" }, words, select);
}

/** Buttons in a named group. */
export function group(words, options, value, choose) {
  const box = element("div", { class: "choices", role: "group", "aria-label": words });
  choices(box, options, choose)(value);
  return element("div", { class: "field" }, element("span", { "aria-hidden": "true" }, words), box);
}

/** A click, Enter or the space bar on a part of an SVG drawing. */
export function onPress(part, act) {
  part.addEventListener("click", act);
  part.addEventListener("keydown", (event) => {
    if (event.key !== " " && event.key !== "Enter") return;
    event.preventDefault();
    act(event);
  });
}

// --- a widget ----------------------------------------------------------------------

/**
 * The ground of a widget. It has the page's light or dark, and a place where a problem is said in words.
 * redraw is called when it gets its place in the page, another width or another theme: a notebook draws first, and
 * puts what was drawn into the page later.
 */
export function ground(model, el, name, label, redraw = () => {}) {
  const problem = element("p", { class: "problem", role: "alert" });
  const root = element("section", { class: `course-widget ${name}`, "aria-label": label }, problem);
  const say = () => {
    problem.textContent = model.get("problem");
    problem.hidden = !problem.textContent;
  };
  const follow = () => {
    if (!root.isConnected) return;
    root.style.colorScheme = hasLightLetters(el) ? "dark" : "light";
    redraw();
  };
  const themes = new MutationObserver(follow); // a theme is a name on the page's outermost elements
  for (const outer of [document.documentElement, document.body]) themes.observe(outer, { attributes: true });
  const sizes = new ResizeObserver(follow);
  sizes.observe(el);
  const device = matchMedia("(prefers-color-scheme: dark)");
  device.addEventListener("change", follow);
  document.addEventListener("load", follow, true); // a theme's style sheet may come later than its name
  model.on("change:problem", say);
  el.append(root);
  say();
  return { root, leave: () => {
    themes.disconnect();
    sizes.disconnect();
    device.removeEventListener("change", follow);
    document.removeEventListener("load", follow, true);
  } };
}

/** A page whose letters are light is dark, whatever it calls its theme. */
function hasLightLetters(el) {
  const [red, green, blue] = getComputedStyle(el).color.match(/[\d.]+/g).map(Number);
  return 0.3 * red + 0.6 * green + 0.1 * blue > 128;
}

/** Tell the kernel what the reader chose. Where there is none, nothing answers. */
export function ask(model, choice) {
  model.set("choice", choice);
  model.save_changes();
}
