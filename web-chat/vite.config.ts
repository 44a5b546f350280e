// The page: static files in `dist/`, addressed relative to it, so that any folder of any server will do.

import { defineConfig } from 'vite';
import { serviceWorker } from './page/build.ts';

export default defineConfig({
  base: './',
  build: { target: 'es2023', assetsInlineLimit: 0, modulePreload: { polyfill: false }, reportCompressedSize: false },
  worker: { format: 'es' },
  // The page's own policy is in index.html, so that it holds wherever the page lies. These are what only a server can say.
  preview: {
    headers: {
      'Content-Security-Policy': "frame-ancestors 'none'",
      'Cross-Origin-Opener-Policy': 'same-origin',
      'Referrer-Policy': 'no-referrer',
      'X-Content-Type-Options': 'nosniff',
    },
  },
  plugins: [serviceWorker()],
});
