//! After `init` most of a policy is dead: the parser of its configuration was needed once. What no
//! call can reach any more is not compiled, which halves the memory of a revision or better.
//!
//! A function that is not reached gets a body that traps, of the same length, so nothing moves and
//! nothing is encoded anew. What can be reached errs on the safe side: everything that is exported but
//! `init`, what those call, and of the tables each function of a type that is called by table.

use std::collections::HashSet;
use std::ops::Range;

use wasmparser::{
    BinaryReaderError, CompositeInnerType, ElementItems, Encoding, ExternalKind, FuncType,
    Operator, OperatorsReader, Parser, Payload, TableInit, TypeRef,
};

const UNREACHABLE: u8 = 0x00;
const NOP: u8 = 0x01;
const END: u8 = 0x0b;

/// One core module of the component.
#[derive(Default)]
struct Module {
    /// `None`: not a function's.
    types: Vec<Option<FuncType>>,
    /// Types of all functions, imported ones first.
    functions: Vec<u32>,
    imported: usize,
    roots: Vec<u32>,
    /// Functions that tables hold or get.
    elements: Vec<u32>,
    /// Others may call by its tables, or it reads references out of them.
    tables_are_open: bool,
    bodies: Vec<Body>,
}

struct Body {
    range: Range<usize>,
    calls: Vec<u32>,
    /// Types called by table.
    types: Vec<u32>,
}

/// The component without what only `init` needs. `component` must be one that
/// [`crate::prepare`] made of a core module: its core exports then have the names of the world.
pub(crate) fn prune(component: &[u8]) -> Result<Vec<u8>, BinaryReaderError> {
    let mut pruned = component.to_vec();
    let mut open: Vec<Option<Module>> = Vec::new();
    for payload in Parser::new(0).parse_all(component) {
        match payload? {
            Payload::Version { encoding, .. } => {
                open.push((encoding == Encoding::Module).then(Module::default));
            }
            Payload::End(_) => {
                if let Some(Some(module)) = open.pop() {
                    for range in module.dead() {
                        let body = &mut pruned[range];
                        // No locals, a trap, and nothing up to the end.
                        if let [locals, trap, rest @ .., end] = body {
                            (*locals, *trap, *end) = (0, UNREACHABLE, END);
                            rest.fill(NOP);
                        }
                    }
                }
            }
            payload => {
                if let Some(Some(module)) = open.last_mut() {
                    module.read(payload)?;
                }
            }
        }
    }
    Ok(pruned)
}

/// `init`, and what frees its result.
fn is_only_for_init(export: &str) -> bool {
    let name = export.strip_prefix("cabi_post_").unwrap_or(export);
    name.starts_with("tidegate:policy/setup@1.") && name.ends_with("#init")
}

impl Module {
    fn read(&mut self, payload: Payload<'_>) -> Result<(), BinaryReaderError> {
        match payload {
            Payload::TypeSection(section) => {
                for group in section {
                    self.types
                        .extend(group?.into_types().map(|t| match t.composite_type.inner {
                            CompositeInnerType::Func(f) => Some(f),
                            _ => None,
                        }));
                }
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    match import?.ty {
                        TypeRef::Func(ty) | TypeRef::FuncExact(ty) => self.functions.push(ty),
                        TypeRef::Table(_) => self.tables_are_open = true,
                        _ => {}
                    }
                }
                self.imported = self.functions.len();
            }
            Payload::FunctionSection(section) => {
                for ty in section {
                    self.functions.push(ty?);
                }
            }
            Payload::TableSection(section) => {
                for table in section {
                    if let TableInit::Expr(expr) = table?.init {
                        references(expr.get_operators_reader(), &mut self.elements)?;
                    }
                }
            }
            Payload::GlobalSection(section) => {
                for global in section {
                    let reader = global?.init_expr.get_operators_reader();
                    references(reader, &mut self.roots)?;
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export?;
                    match export.kind {
                        ExternalKind::Func | ExternalKind::FuncExact
                            if !is_only_for_init(export.name) =>
                        {
                            self.roots.push(export.index);
                        }
                        ExternalKind::Table => self.tables_are_open = true,
                        _ => {}
                    }
                }
            }
            Payload::StartSection { func, .. } => self.roots.push(func),
            Payload::ElementSection(section) => {
                for element in section {
                    match element?.items {
                        ElementItems::Functions(functions) => {
                            for function in functions {
                                self.elements.push(function?);
                            }
                        }
                        ElementItems::Expressions(_, expressions) => {
                            for expr in expressions {
                                references(expr?.get_operators_reader(), &mut self.elements)?;
                            }
                        }
                    }
                }
            }
            Payload::CodeSectionEntry(body) => {
                let (mut calls, mut types) = (Vec::new(), Vec::new());
                for operator in body.get_operators_reader()? {
                    match operator? {
                        Operator::Call { function_index }
                        | Operator::ReturnCall { function_index }
                        | Operator::RefFunc { function_index } => calls.push(function_index),
                        Operator::CallIndirect { type_index, .. }
                        | Operator::ReturnCallIndirect { type_index, .. } => types.push(type_index),
                        Operator::TableGet { .. }
                        | Operator::CallRef { .. }
                        | Operator::ReturnCallRef { .. } => self.tables_are_open = true,
                        _ => {}
                    }
                }
                self.bodies.push(Body {
                    range: body.range(),
                    calls,
                    types,
                });
            }
            _ => {}
        }
        Ok(())
    }

    /// Where the bodies lie that nothing reaches.
    fn dead(mut self) -> Vec<Range<usize>> {
        let type_of = |function: u32| {
            let ty = *self.functions.get(function as usize)?;
            self.types.get(ty as usize)?.as_ref()
        };
        if self.tables_are_open {
            self.roots.extend(&self.elements);
        }
        let mut reached = vec![false; self.functions.len()];
        let mut called: HashSet<&FuncType> = HashSet::new();
        while let Some(function) = self.roots.pop() {
            let function = function as usize;
            if reached.get(function).is_none_or(|reached| *reached) {
                continue;
            }
            reached[function] = true;
            let Some(body) = function
                .checked_sub(self.imported)
                .and_then(|n| self.bodies.get(n))
            else {
                continue;
            };
            self.roots.extend(&body.calls);
            for ty in &body.types {
                if let Some(Some(ty)) = self.types.get(*ty as usize)
                    && called.insert(ty)
                {
                    let of_type = |f: &&u32| type_of(**f) == Some(ty);
                    self.roots.extend(self.elements.iter().filter(of_type));
                }
            }
        }
        self.bodies
            .iter()
            .zip(&reached[self.imported.min(reached.len())..])
            .filter(|(_, reached)| !**reached)
            .map(|(body, _)| body.range.clone())
            .collect()
    }
}

/// Adds the functions that a constant expression refers to.
fn references(reader: OperatorsReader<'_>, to: &mut Vec<u32>) -> Result<(), BinaryReaderError> {
    for operator in reader {
        if let Operator::RefFunc { function_index } = operator? {
            to.push(function_index);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of the functions that are left, by the constant in the body of each.
    fn left(module: &str) -> Vec<i32> {
        let bytes = wat::parse_str(format!("(component (core module {module}))")).unwrap();
        let pruned = prune(&bytes).unwrap();
        assert_eq!(pruned.len(), bytes.len());
        wasmparser::validate(&pruned).unwrap();
        let mut left = Vec::new();
        for payload in Parser::new(0).parse_all(&pruned) {
            if let Payload::CodeSectionEntry(body) = payload.unwrap() {
                let first = body.get_operators_reader().unwrap().read().unwrap();
                match first {
                    Operator::I32Const { value } => left.push(value),
                    Operator::Unreachable => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        left
    }

    #[test]
    fn only_what_init_alone_reaches_is_gone() {
        let module = r#"
            (import "x" "y" (func $import))
            (func (export "tidegate:policy/setup@1.0.0#init") (drop (i32.const 1)) (call $parse) (call $both))
            (func (export "cabi_post_tidegate:policy/setup@1.0.0#init") (drop (i32.const 2)))
            (func (export "tidegate:policy/routing@1.0.0#decide") (drop (i32.const 3)) (call $import) (call $deep))
            (func (export "cabi_realloc") (drop (i32.const 4)))
            (func $parse (local i32 i64) (drop (i32.const 5)) (call $digit))
            (func $digit (drop (i32.const 6)))
            (func $both (drop (i32.const 7)))
            (func $deep (drop (i32.const 8)) (call $deeper))
            (func $deeper (drop (i32.const 9)) (call $both))
            (func $start (drop (i32.const 10)))
            (start $start)
        "#;
        assert_eq!(left(module), [3, 4, 7, 8, 9, 10]);
    }

    #[test]
    fn what_a_table_may_call_stays_by_its_type() {
        let module = |exports: &str, decide: &str| {
            format!(
                r#"
            (type $one (func (param i32)))
            (type $same (func (param i32)))
            (type $two (func (param i64)))
            (table $t {exports} 4 funcref)
            (elem (i32.const 0) $a $b $c)
            (global funcref (ref.func $d))
            (func (export "decide") (drop (i32.const 1)) {decide})
            (func $a (type $one) (drop (i32.const 2)) (call $e))
            (func $b (type $same) (drop (i32.const 3)))
            (func $c (type $two) (drop (i32.const 4)))
            (func $d (drop (i32.const 5)))
            (func $e (drop (i32.const 6)))
            "#
            )
        };
        let indirect = "(call_indirect (type $same) (i32.const 0) (i32.const 1))";
        assert_eq!(left(&module("", "")), [1, 5]);
        assert_eq!(left(&module("", indirect)), [1, 2, 3, 5, 6]);
        // Somebody else may call by the table, or a reference is taken from it.
        let all = [1, 2, 3, 4, 5, 6];
        assert_eq!(left(&module(r#"(export "t")"#, "")), all);
        assert_eq!(
            left(&module("", "(drop (table.get $t (i32.const 0)))")),
            all
        );
    }
}
