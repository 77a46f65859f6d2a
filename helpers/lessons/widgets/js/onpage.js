// Widgets in a page without a kernel: each module runs on what the page keeps for it, in place of its still picture.

/** What a module sees of a notebook's model: values, and news of their changes. Nobody answers. */
export class PageModel {
  constructor(values) {
    this.values = { problem: "", answer: {}, ...values };
    this.listeners = [];
  }

  get(name) {
    return this.values[name];
  }

  set(name, value) {
    this.values[name] = value;
    for (const [event, act] of this.listeners) if (event === `change:${name}`) act();
  }

  on(event, act) {
    this.listeners.push([event, act]);
  }

  save_changes() {}
}

/** Start the widget of one place: {module, data, choice, answer} stand in its script element. */
async function start(place) {
  const { module, ...values } = JSON.parse(place.querySelector("script").textContent);
  const { default: widget } = await import(`./${module}.js`);
  const el = document.createElement("div");
  place.append(el); // in the page before it draws: it reads the page's colours and width
  widget.render({ model: new PageModel(values), el });
  place.classList.add("runs");
}

for (const place of document.querySelectorAll("[data-course-widget]")) await start(place);
