// Service worker: caches the page's own files, so that the page works offline. It ignores requests for models, which the
// engine stores itself.

const FILES = __FILES__;
const CACHE = 'page-__VERSION__';

self.addEventListener('install', (event) => {
  const fill = async () => {
    // Bypass the HTTP cache, which may hold another version.
    await (await caches.open(CACHE)).addAll(FILES.map((file) => new Request(file, { cache: 'reload' })));
    await self.skipWaiting();
  };
  event.waitUntil(fill());
});

self.addEventListener('activate', (event) => {
  const clean = async () => {
    for (const name of await caches.keys()) {
      if (name.startsWith('page-') && name !== CACHE) await caches.delete(name);
    }
    await self.clients.claim();
  };
  event.waitUntil(clean());
});

self.addEventListener('fetch', (event) => {
  const { request } = event;
  const url = new URL(request.url);
  if (request.method !== 'GET' || url.origin !== self.location.origin || request.headers.has('range')) return;
  const answer = async () => {
    const cached = await caches.match(request.mode === 'navigate' ? './' : request, { ignoreSearch: true });
    return cached ?? fetch(request);
  };
  const scope = new URL('./', self.location.href).pathname;
  const own = FILES.some((file) => new URL(file, self.location.href).pathname === url.pathname);
  if (own || url.pathname === `${scope}index.html`) event.respondWith(answer());
});
