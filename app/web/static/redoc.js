// Search would need a worker made of a string, which the page's policy forbids.
Redoc.init("openapi.json", { disableSearch: true, hideDownloadButton: false }, document.getElementById("reader"));
