// Browsers start no workers for pages that are opened from disk. There the search runs in a hidden frame instead, so that
// the site needs neither a server nor a network.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      this.inner = this.frame.contentWindow;
      this.inner.postMessage = (data) => setTimeout(() => this.onmessage?.({ data: structuredClone(data) }));
      this.loaded = new Promise((resolve) => {
        const script = this.inner.document.createElement("script");
        script.src = url;
        script.onload = resolve;
        script.onerror = () => this.onerror?.(new Event("error"));
        this.inner.document.body.append(script);
      });
    }
    postMessage(data) {
      const copy = structuredClone(data); // as between threads: neither side sees what the other makes of it
      this.loaded.then(() => this.inner.onmessage?.({ data: copy }));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
