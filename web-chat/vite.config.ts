// Builds the page: static files in `dist/` with relative addresses, for any folder of any server.

import { defineConfig } from 'vite';
import { serviceWorker } from './page/build.ts';

export default defineConfig({
  base: './',
  build: { target: 'es2023', assetsInlineLimit: 0, modulePreload: { polyfill: false }, reportCompressedSize: false },
  worker: { format: 'es' },
  // index.html has the page's content security policy. These headers cannot be set in HTML.
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
