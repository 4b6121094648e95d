// What Gradio's components leave out: a photo dropped or pasted anywhere, and the keyboard.
() => {
  const fileInput = () => document.querySelector('#photo input[type="file"]');
  const types = { heic: "image/heic", heif: "image/heif", avif: "image/avif", tif: "image/tiff",
                  tiff: "image/tiff" };

  // Browsers don't know the type of every image file, and Gradio silently drops what has none.
  function withType(file) {
    const suffix = file.name.split(".").pop().toLowerCase();
    const type = file.type.startsWith("image/") ? file.type : types[suffix] || "image/unknown";
    return new File([file], file.name || "pasted.png", { type });
  }

  function takeUp(file) {
    const input = fileInput();
    if (!input) return; // an upload is on its way
    const files = new DataTransfer();
    files.items.add(withType(file));
    input.files = files.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  }

  const hasFiles = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
  const dragging = (on) => document.body.classList.toggle("dragging", on);

  // In the capture phase: before Gradio's own drop zone.
  window.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    dragging(true);
  }, true);
  window.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) dragging(false);
  }, true);
  window.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    event.stopPropagation();
    dragging(false);
    const file = event.dataTransfer.files[0];
    if (file) takeUp(file);
  }, true);
  window.addEventListener("change", (event) => {
    const file = event.target === fileInput() && event.target.files[0];
    if (file) closeErrors();
    if (!file || file.type.startsWith("image/")) return;
    event.stopPropagation();
    takeUp(file);
  }, true);
  window.addEventListener("paste", (event) => {
    const file = event.clipboardData?.files[0];
    if (!file) return;
    event.preventDefault();
    takeUp(file);
  });

  // The handle of the comparison: arrow keys, Home and End, told to Gradio as a drag.
  // From where to where it can be moved.
  function track(handle) {
    const image = document.querySelector("#slider img").getBoundingClientRect();
    const box = handle.parentElement.getBoundingClientRect();
    return [Math.max(image.left, box.left), Math.min(image.right, box.right)];
  }

  // Where it is, in percent, wherever it was dragged to; told to screen readers.
  function whereNow(handle) {
    const [left, right] = track(handle), box = handle.getBoundingClientRect();
    const share = right > left ? (box.left + box.width / 2 - left) / (right - left) : 0.5;
    const now = Math.round(100 * share);
    handle.setAttribute("aria-valuenow", now);
    return now;
  }

  function moveHandle(handle, share) {
    const [left, right] = track(handle), box = handle.getBoundingClientRect();
    const at = { bubbles: true, view: window, clientX: left + share * (right - left),
                 clientY: box.top + box.height / 2 };
    handle.dispatchEvent(new MouseEvent("mousedown", at));
    window.dispatchEvent(new MouseEvent("mouseup", at));
    handle.setAttribute("aria-valuenow", Math.round(100 * share));
  }

  for (const kind of ["focusin", "pointerup"])
    window.addEventListener(kind, () => {
      const handle = document.querySelector('#slider [data-testid="slider"]');
      if (handle) whereNow(handle);
    });
  window.addEventListener("keydown", (event) => {
    const handle = event.target.closest?.('#slider [data-testid="slider"]');
    if (!handle) return;
    const now = whereNow(handle);
    const step = event.shiftKey ? 10 : 2;
    const next = { ArrowLeft: now - step, ArrowDown: now - step, ArrowRight: now + step,
                   ArrowUp: now + step, Home: 0, End: 100 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    moveHandle(handle, Math.min(100, Math.max(0, next)) / 100);
  });

  // Gradio would leave the list of formats open, over the picture.
  window.addEventListener("keydown", (event) => {
    if (event.key === "Tab" && event.target.closest?.("#format")) event.stopPropagation();
  }, true);

  // Gradio takes the detail when the mouse lets go of the slider and when its box is left; here
  // also when keys let go of it and on Enter, and only where it is another one than before.
  let taken = null;
  const detail = (event) => event.target.matches?.("#detail input") && event.target;
  for (const kind of ["pointerdown", "focusin"])
    window.addEventListener(kind, (event) => {
      if (detail(event)) taken ??= event.target.value;
    }, true);
  for (const kind of ["pointerup", "blur"])
    window.addEventListener(kind, (event) => {
      const input = detail(event);
      if (!input || (kind === "blur") !== (input.type === "number")) return;
      const { value, min, max } = input;
      const possible = value === "" ? taken : String(Math.min(max, Math.max(min, value)));
      if (possible !== value) {
        input.value = possible;
        input.dispatchEvent(new Event("input", { bubbles: true }));
      }
      if (possible === taken) event.stopPropagation();
      taken = possible;
    }, true);
  window.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && detail(event)?.type === "number") event.target.blur();
  });
  window.addEventListener("keyup", (event) => {
    if (detail(event)?.type === "range" && /Arrow|Home|End|Page/.test(event.key))
      event.target.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
  });

  // A photo is read or enlarged while Gradio shows its progress over the status line.
  function follow() {
    const tracker = document.querySelector('#status [data-testid="status-tracker"]');
    clearTimeout(resting);
    if (tracker?.matches(".full:not(.hide)") && !tracker.querySelector(".error")) show(true);
    else resting = setTimeout(show, 150, false);
  }
  let resting; // from reading to enlarging there is a moment in which nothing is in progress

  function show(running) {
    if (running === document.body.classList.contains("running")) return;
    document.body.classList.toggle("running", running);
    if (running) closeErrors();
    const [hidden, shown] = running ? ["again", "stop"] : ["stop", "again"];
    if (document.activeElement.id === hidden) document.getElementById(shown)?.focus();
  }

  // Of what was tried before.
  function closeErrors() {
    document.querySelectorAll('[data-testid="toast-close"]').forEach((button) => button.click());
  }

  // Names and roles for what Gradio draws without.
  function describe() {
    const handle = document.querySelector('#slider [data-testid="slider"]:not([tabindex])');
    if (handle) {
      handle.tabIndex = 0;
      handle.setAttribute("role", "slider");
      handle.setAttribute("aria-label", "Border between the left half and SRGAN");
      handle.setAttribute("aria-valuemin", "0");
      handle.setAttribute("aria-valuemax", "100");
      handle.setAttribute("aria-valuenow", "50");
    }
    document.querySelectorAll('#slider img[alt=""]').forEach((image, i) => {
      image.alt = i ? "Right half" : "Left half";
    });
    document.querySelector("#slider .empty[aria-label]")?.removeAttribute("aria-label");
    document.querySelectorAll("#photo button[aria-dropeffect]").forEach((button) => {
      button.setAttribute("aria-label", button.innerText.trim());
    });
    // A button to fold the message, with the one to close it inside: only that one is needed.
    document.querySelectorAll(".toast-header[role=button]").forEach((header) => {
      header.removeAttribute("role");
      header.removeAttribute("tabindex");
    });
    document.querySelector("#status .html-container")?.setAttribute("aria-live", "polite");
    document.querySelectorAll("#about .here").forEach((span) => {
      const here = location.origin + location.pathname.replace(/\/$/, "");
      if (span.textContent !== here) span.textContent = here;
    });
  }
  new MutationObserver(() => {
    follow();
    describe();
  }).observe(document.body, { childList: true, subtree: true, attributeFilter: ["class"] });
  describe();
}
