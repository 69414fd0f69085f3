// Pictures open large and commands are copied; without it the page is whole.
for (const command of document.querySelectorAll("pre")) {
  const button = document.createElement("button"), box = document.createElement("div");
  button.textContent = "copy";
  button.onclick = async () => {
    try {
      await navigator.clipboard.writeText(command.textContent.trim());
    } catch {  // not allowed from a file, by some browsers
      getSelection().selectAllChildren(command);
      document.execCommand("copy");
    }
    button.textContent = "copied";
    setTimeout(() => (button.textContent = "copy"), 1500);
  };
  box.className = "command";
  command.replaceWith(box);
  box.append(command, button);
}
const large = document.body.appendChild(document.createElement("dialog"));
large.onclick = () => large.close();
for (const shown of document.querySelectorAll("figure > img, figure > .clip")) {
  const open = () => {
    large.replaceChildren(shown.cloneNode());
    large.showModal();
  };
  shown.tabIndex = 0;
  shown.onclick = open;
  shown.onkeydown = (event) => event.key === "Enter" && open();
}
