// The page: static files in `dist/`, addressed relative to it, so that any folder of any server will do.

import { defineConfig } from 'vite';
import { serviceWorker } from './page/build.ts';

export default defineConfig({
  base: './',
  build: { target: 'es2023', assetsInlineLimit: 0, modulePreload: { polyfill: false }, reportCompressedSize: false },
  worker: { format: 'es' },
  plugins: [serviceWorker()],
});
