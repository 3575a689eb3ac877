// Making and changing elements. Text only ever goes in as text, so nothing that a task is called can become markup.

export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Gives every item an element of its own that lives as long as the item does, in the order of the items: what did not
// change is not touched, so a reader's focus, selection and scrolling stay.
export function keep(parent, items, { key, create, update }) {
  const before = new Map([...parent.children].map((element) => [element.dataset.key, element]));
  const focused = document.activeElement;
  let next = parent.firstElementChild;
  for (const item of items) {
    const name = key(item);
    let element = before.get(name);
    before.delete(name);
    if (!element) {
      element = create(item);
      element.dataset.key = name;
    }
    if (element === next) next = next.nextElementSibling;
    else parent.insertBefore(element, next);
    update(element, item);
  }
  for (const element of before.values()) element.remove();
  if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
