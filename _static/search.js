// What the search shows of a page: its text, without code, formulas and the frame around it.
addEventListener("DOMContentLoaded", () => {
  const textOf = Search.htmlToText;
  const frame = ".bd-header-article, #jb-print-docs-body, .cell_input, .math, .prev-next-footer";
  Search.htmlToText = (html, anchor) => {
    const page = new DOMParser().parseFromString(html, "text/html");
    for (const part of page.querySelectorAll(frame)) part.remove();
    return textOf(page.documentElement.outerHTML, anchor);
  };
});
