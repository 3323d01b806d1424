"""Compiles chat templates to code that counts what it makes, by the methods of `Work` that `context` has."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame, MacroRef

from deepen_core.chat.template_estimates import FILTERS

_TERMS = 8
"""Of a sum that are counted together. So it makes at most as many times as much as may still be made."""


class CountingCode(CodeGenerator):
    """Counts each value that an operator, filter or literal makes or that is written, and each turn of a loop.

    Calls, products and filters that `FILTERS` names are counted by the environment. The methods are those that Jinja's
    compiler calls for each part of a template.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._bodies: set[int] = set()  # ids of the bodies of loops and macros
        self._terms: dict[int, int] = {}  # ids of sums that are counted with a larger one, and terms left of that

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802
        """Compiles a loop."""
        self._bodies.add(id(node.body))
        super().visit_For(node, frame)

    def macro_body(self, node: nodes.Macro | nodes.CallBlock, frame: Frame) -> tuple[Frame, MacroRef]:
        """Compiles a macro."""
        self._bodies.add(id(node.body))
        return super().macro_body(node, frame)

    def blockvisit(self, block: Iterable[nodes.Node], frame: Frame) -> None:
        """Compiles the body of something, and counts the text in it."""
        parts = [part for node in block if isinstance(node, nodes.Output) for part in node.nodes]
        length = sum(len(part.data) for part in parts if isinstance(part, nodes.TemplateData))
        length += sum(len(str(part.value)) for part in parts if isinstance(part, nodes.Const))
        if length or id(block) in self._bodies:
            self.writeline(f"context.written({length})")
        super().blockvisit(block, frame)

    def visit_Filter(self, node: nodes.Filter, frame: Frame) -> None:  # noqa: N802
        """Compiles a filter."""
        if node.name not in FILTERS:
            self._counted("made", super().visit_Filter, node, frame)
            return
        self.write(f"context.filtered({node.name!r}, ")
        if node.node is None:
            self.write(f"concat({frame.buffer})")
        else:
            self.visit(node.node, frame)
        self.signature(node, frame)
        self.write(")")

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:  # noqa: N802
        """Compiles a sum, of which texts are the most common."""
        terms = self._terms.pop(id(node), 0)
        if isinstance(node.left, nodes.Add) and terms != 1:
            self._terms[id(node.left)] = (terms or _TERMS) - 1
        if terms:
            super().visit_Add(node, frame)
        else:
            self._counted("made", super().visit_Add, node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        """Compiles joined texts, a few at a time."""
        while len(node.nodes) > _TERMS:
            parts = [node.nodes[start : start + _TERMS] for start in range(0, len(node.nodes), _TERMS)]
            node = nodes.Concat([nodes.Concat(part) for part in parts], lineno=node.lineno)
        self._counted("made", super().visit_Concat, node, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        """Compiles a list."""
        self._counted("made", super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        """Compiles a mapping."""
        self._counted("made", super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        """Compiles a tuple, or the names that one is assigned to."""
        if node.ctx == "load":
            self._counted("made", super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        """Compiles an item, or a slice, which is a copy."""
        if isinstance(node.arg, nodes.Slice):
            self._counted("made", super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: N802
        """Compiles a comparison. To find out whether a value is a constant takes no time."""
        sides = (node.expr, *(operand.expr for operand in node.ops))
        equality = all(operand.op in ("eq", "ne") for operand in node.ops)
        if equality and any(isinstance(side, nodes.Const) for side in sides):
            super().visit_Compare(node, frame)
        else:
            self._counted("compared", super().visit_Compare, node, frame)

    # As jinja2.nativetypes does: what is written, which may be constant.

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, (nodes.TemplateData, nodes.Const)):
            raise nodes.Impossible  # it would be computed here, without limits
        return super()._output_child_to_const(node, frame, finalize)

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        super()._output_child_pre(node, frame, finalize)
        if isinstance(node, nodes.Add):
            self._terms[id(node)] = _TERMS
        self.write("context.made(")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(")")
        super()._output_child_post(node, frame, finalize)

    def _counted(self, how: str, visit: Callable[[Any, Frame], None], node: nodes.Node, frame: Frame) -> None:
        self.write(f"context.{how}(")
        visit(node, frame)
        self.write(")")
