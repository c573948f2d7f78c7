// A click on a time moves the film there; a button is reached by the keyboard as by the mouse.
window.omni = {
  reveal(selector) {
    const found = document.querySelector(selector);
    if (found) found.scrollIntoView({ behavior: "smooth", block: "nearest" });
  },
};
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-seconds]");
  const film = button && document.querySelector("#film video");
  if (!film) return;
  film.currentTime = Number(button.dataset.seconds);
  film.scrollIntoView({ behavior: "smooth", block: "nearest" });
});
