declare module "*.wasm" {
  const module: WebAssembly.Module;
  export default module;
}
declare module "ws";
declare module "quorate-engine-base64" {
  const base64: string;
  export default base64;
}
