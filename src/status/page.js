"use strict";
// Takes the page again every few seconds and puts its content in place of this one.
async function renew() {
  try {
    const answer = await fetch(location.href, { cache: "no-store" });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const main = page.querySelector("main");
    // What somebody has marked, to copy it, stays.
    if (main && !String(getSelection())) {
      document.querySelector("main").replaceWith(document.adoptNode(main));
      document.title = page.title;
    }
    document.body.classList.toggle("silent", !main);
  } catch {
    document.body.classList.add("silent");
  }
  setTimeout(renew, 5000);
}
setTimeout(renew, 5000);
