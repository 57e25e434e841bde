// What CI does with this Next.js application: its scripts, each from the same installed node_modules.
import { pipeline, push, type PipelineDefinition } from "@harmont/hm";
import { js } from "@harmont/hm/toolchains";

const app = js.project({ path: "." });
const steps = [app.run("build"), app.run("lint")];

export default [
  { slug: "ci", triggers: [push({ branch: "main" })], pipeline: pipeline(steps, { env: { CI: "true" } }) },
] satisfies PipelineDefinition[];
