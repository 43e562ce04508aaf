//! A look at an upload before anything is compiled: sizes, imports, exports.

use wasmparser::{Encoding, Parser, Payload};

use crate::limits;
use crate::prepare::Refused;
use crate::worlds::World;

const PACKAGE: &str = "tidegate:policy/";

/// What was found. Names are those of the outermost module or component.
#[derive(Debug, Default)]
pub(crate) struct Shape {
    pub is_component: bool,
    /// Of a component: instance names. Of a module: module names and fields.
    imports: Vec<(String, Option<String>)>,
    exports: Vec<String>,
    /// Of a module: it says which world it is of, so its types need not be added.
    pub has_type_section: bool,
}

fn invalid(error: wasmparser::BinaryReaderError) -> Refused {
    Refused::NotWasm(error.to_string())
}

/// Reads the sections and holds them against the limits on uploads.
pub(crate) fn inspect(wasm: &[u8]) -> Result<Shape, Refused> {
    let mut shape = Shape::default();
    let mut depth = 0usize;
    let (mut functions, mut data, mut modules, mut instances) = (0u32, 0usize, 0u32, 0u32);
    let mut first = true;
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(invalid)? {
            Payload::Version { encoding, .. } => {
                if std::mem::take(&mut first) {
                    shape.is_component = encoding == Encoding::Component;
                }
                if encoding == Encoding::Module {
                    modules += 1;
                }
            }
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::CodeSectionStart { count, .. } => {
                functions = functions.saturating_add(count);
                if functions > limits::FUNCTIONS {
                    return Err(Refused::TooLarge(format!(
                        "{functions} functions; at most {}",
                        limits::FUNCTIONS
                    )));
                }
            }
            Payload::CodeSectionEntry(body) if body.range().len() > limits::FUNCTION_BODY => {
                return Err(Refused::TooLarge(format!(
                    "a function of {} bytes; at most {}",
                    body.range().len(),
                    limits::FUNCTION_BODY
                )));
            }
            Payload::DataSection(section) => {
                data += section.range().len();
                if data > limits::DATA {
                    return Err(Refused::TooLarge(format!(
                        "{data} bytes of data; at most {}",
                        limits::DATA
                    )));
                }
            }
            Payload::MemorySection(section) => {
                for memory in section {
                    let memory = memory.map_err(invalid)?;
                    let page = 1u64 << memory.page_size_log2.unwrap_or(16).min(16);
                    if memory.initial.saturating_mul(page) > limits::MEMORY as u64 {
                        return Err(Refused::TooLarge(format!(
                            "{} pages of memory at the start; at most {} MiB",
                            memory.initial,
                            limits::MEMORY >> 20
                        )));
                    }
                }
            }
            Payload::TableSection(section) => {
                for table in section {
                    let table = table.map_err(invalid)?;
                    if table.ty.initial > limits::TABLE_ELEMENTS as u64 {
                        return Err(Refused::TooLarge(format!(
                            "a table of {} elements; at most {}",
                            table.ty.initial,
                            limits::TABLE_ELEMENTS
                        )));
                    }
                }
            }
            Payload::InstanceSection(section) => {
                instances = instances.saturating_add(section.count())
            }
            Payload::ImportSection(section) if depth == 0 => {
                for import in section.into_imports() {
                    let import = import.map_err(invalid)?;
                    shape
                        .imports
                        .push((import.module.to_owned(), Some(import.name.to_owned())));
                }
            }
            Payload::ExportSection(section) if depth == 0 => {
                for export in section {
                    shape.exports.push(export.map_err(invalid)?.name.to_owned());
                }
            }
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    shape
                        .imports
                        .push((import.map_err(invalid)?.name.name.to_owned(), None));
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    shape
                        .exports
                        .push(export.map_err(invalid)?.name.name.to_owned());
                }
            }
            Payload::CustomSection(section) if depth == 0 => {
                shape.has_type_section |= section.name().starts_with("component-type");
            }
            _ => {}
        }
    }
    // Instances that only bundle exports count too, so the bound is looser than the pool's.
    if modules > limits::CORE_INSTANCES || instances > 8 * limits::CORE_INSTANCES {
        return Err(Refused::TooLarge(format!(
            "{modules} modules and {instances} instances in the component; at most {} modules",
            limits::CORE_INSTANCES
        )));
    }
    Ok(shape)
}

impl Shape {
    /// Checks imports and exports against the worlds and says which world it is.
    pub fn world(&self) -> Result<World, Refused> {
        for (module, field) in &self.imports {
            self.check_import(module, field.as_deref())?;
        }
        let mut found = None;
        for world in World::ALL {
            if self.exports_interface(world.interface())? {
                if let Some(other) = found {
                    return Err(Refused::MissingExport(format!(
                        "it is a {other} and a {world}; a policy is of one world"
                    )));
                }
                found = Some(world);
            }
        }
        let Some(world) = found else {
            return Err(Refused::MissingExport(
                "none of tidegate:policy/routing@1, tidegate:policy/shaping@1 and \
                 tidegate:policy/log-export@1 is exported"
                    .to_owned(),
            ));
        };
        if !self.exports_interface("setup")? {
            return Err(Refused::MissingExport(format!(
                "tidegate:policy/setup@1 is not exported; every {world} has `init`"
            )));
        }
        Ok(world)
    }

    fn check_import(&self, module: &str, field: Option<&str>) -> Result<(), Refused> {
        let name = match field {
            Some(field) => format!("{module}#{field}"),
            None => module.to_owned(),
        };
        if let Some(rest) = module.strip_prefix(PACKAGE) {
            let (interface, version) = rest.split_once('@').unwrap_or((rest, ""));
            if interface == "log" || interface == "types" {
                return if version.starts_with("1.") {
                    Ok(())
                } else {
                    Err(other_version(module))
                };
            }
        }
        let remedy = if module.starts_with("wasi") {
            "a policy has no WASI; build for wasm32-unknown-unknown"
        } else if module == "env" {
            "an undefined symbol; a policy links everything it uses"
        } else {
            "a policy may import tidegate:policy/log and nothing else"
        };
        Err(Refused::Import(format!("{name}: {remedy}")))
    }

    /// Whether an interface of this package is exported; in another version is an error.
    fn exports_interface(&self, interface: &str) -> Result<bool, Refused> {
        let mut other = None;
        for name in &self.exports {
            // A module exports `package/interface@version#function`.
            let name = name.split('#').next().unwrap_or(name);
            let Some((found, version)) = name.strip_prefix(PACKAGE).and_then(|n| n.split_once('@'))
            else {
                continue;
            };
            if found == interface {
                if version.starts_with("1.") {
                    return Ok(true);
                }
                other = Some(name);
            }
        }
        other.map_or(Ok(false), |name| Err(other_version(name)))
    }
}

fn other_version(name: &str) -> Refused {
    Refused::Version(format!(
        "{name}; this gateway speaks tidegate:policy@1 ({})",
        World::ALL.map(World::as_str).join(", ")
    ))
}
