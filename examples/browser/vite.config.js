import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

export default defineConfig({
  plugins: [react()],
  build: {
    target: "es2022",
    rollupOptions: { input: { wallet: "index.html", checkout: "checkout.html", recover: "recover.html" } },
  },
  worker: { format: "es" },
});
