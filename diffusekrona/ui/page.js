// For keyboards and screen readers, what Gradio leaves out.
() => {
  const lists = () => document.querySelectorAll("ul[role=listbox]");
  // A long list can be scrolled, so the Tab key would enter it; left by its field, it is gone. At
  // once, for the next key may follow before the next frame.
  const bar = () => { for (const list of lists()) list.tabIndex = -1; };
  const mend = () => {
    for (const list of lists()) {  // Gradio can leave one open over what is below
      const box = list.closest(".block")?.querySelector("input[role=combobox]");
      if (box && box !== document.activeElement) box.dispatchEvent(new FocusEvent("blur"));
    }
    for (const head of document.querySelectorAll("button.label-wrap"))
      head.setAttribute("aria-expanded", head.classList.contains("open"));
    for (const cross of document.querySelectorAll(".token-remove"))
      cross.setAttribute("aria-label", cross.title || "Remove");
    for (const box of document.querySelectorAll("input[role=combobox]")) {
      const block = box.closest(".block"), info = block?.querySelector(".info-text");
      if (!info) continue;
      info.id ||= `${block.id}-info`;
      box.setAttribute("aria-describedby", info.id);
    }
  };
  // What is typed into captions, by the picture's name. It is saved when the field is left, whatever
  // has become of the field: more pictures lay it out anew, and then it is typed into the new one.
  const drafts = (window.dkDrafts ??= {});
  const pictureOf = (box) => box.closest?.(".dk-caption")?.querySelector("img")?.alt;
  const save = () => {
    const box = document.querySelector("#captions textarea");
    if (!box || !Object.keys(drafts).length) return;
    box.value = JSON.stringify(drafts);
    box.dispatchEvent(new InputEvent("input", { bubbles: true }));
    box.dispatchEvent(new FocusEvent("blur"));
  };
  document.addEventListener("input", ({ target }) => {
    const name = pictureOf(target);
    if (name) drafts[name] = target.value;
  });
  document.addEventListener("focusout", ({ target }) => { if (pictureOf(target)) save(); });
  document.addEventListener("keydown", ({ target, key }) => {
    if (key === "Enter" && pictureOf(target)) save();
  });
  const restore = () => {
    for (const box of document.querySelectorAll(".dk-caption textarea")) {
      const draft = drafts[pictureOf(box)];
      if ((draft ?? box.value) === box.value) continue;
      box.value = draft;
      box.dispatchEvent(new InputEvent("input", { bubbles: true }));
      if (document.activeElement === document.body) box.focus();
      else save();
    }
  };
  let due = false;
  const later = () => {
    bar();
    if (!due) requestAnimationFrame(() => { due = false; mend(); restore(); });
    due = true;
  };
  // When the user last edited each field or used each control: an answer of the server must not
  // take the place of what was typed after it was asked for. ("change" comes only when a field is left.)
  const when = (window.dkActed ??= {});
  const note = ({ type, target, key }) => {
    const list = target.closest?.("li[role=option]") || target.matches?.("[role=combobox]");
    const acts = { mousedown: list && target.closest("li"),
      keydown: list && ["Enter", "Backspace", "Delete"].includes(key),
      click: target.closest?.("button") };
    if (!(acts[type] ?? true)) return;
    for (let at = target.closest?.("[id]"); at; at = at.parentElement?.closest("[id]"))
      when[at.id] = performance.now();
  };
  for (const kind of ["input", "drop", "mousedown", "keydown", "click"])
    document.addEventListener(kind, note, true);
  // Gradio's text fields report pressed keys only: not what is pasted, cut, deleted, or typed on a
  // phone's keyboard.
  let pressed = false;
  const press = ({ type, key }) => { pressed = type === "keypress" && key !== "Enter"; };
  for (const kind of ["keydown", "keypress"]) document.addEventListener(kind, press, true);
  document.addEventListener("input", ({ target }) => {
    if (!pressed && target.matches("[data-testid=textbox]"))
      target.dispatchEvent(new KeyboardEvent("keypress", { bubbles: true }));
    pressed = false;
  }, true);
  // A field that is still being typed in holds its old value until it is left: pictures that are
  // dropped would be another subject's.
  document.addEventListener("drop", () => document.activeElement?.blur(), true);
  const seen = { subtree: true, childList: true, attributes: true, attributeFilter: ["class"] };
  new MutationObserver(later).observe(document.body, seen);
  later();
}
