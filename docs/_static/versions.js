// Lists the published versions in the side bar. They stand in `versions.json`, one folder above this version's pages;
// a build that is read from a disk has no such file, and no list.
document.addEventListener("DOMContentLoaded", async () => {
  const list = document.getElementById("versions");
  if (!list || location.protocol === "file:") return;
  const root = new URL(list.dataset.root, location.href);
  const site = new URL("../", new URL(".", root));
  const answer = await fetch(new URL("versions.json", site)).catch(() => null);
  if (!answer || !answer.ok) return;
  for (const version of await answer.json()) {
    const link = document.createElement("a");
    link.href = new URL(`${version}/`, site).href;
    link.textContent = version;
    if (location.href.startsWith(link.href)) link.setAttribute("aria-current", "page");
    list.append(link);
  }
});
