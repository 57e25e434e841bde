// What CI does with this package: its scripts, each from the same installed node_modules.
import { pipeline, push, type PipelineDefinition } from "@harmont/hm";
import { js } from "@harmont/hm/toolchains";

const project = js.project({ path: "." });
const steps = ["build", "test", "lint"].map((script) => project.run(script));

export default [
  { slug: "ci", triggers: [push({ branch: "main" })], pipeline: pipeline(steps, { env: { CI: "true" } }) },
] satisfies PipelineDefinition[];
