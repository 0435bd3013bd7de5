"""Operations that change what they take: later readers of it take their result."""

import inspect

from qhelpers.ptq.rules import module_of, rule_of


def follow_changes(graph, kinds):
    """Let whatever reads a tensor after it was changed in place read the operation's result.

    What changes the model's own buffers is marked as "state", so that no codes come between.
    kinds: what the nodes return, as Kinds finds it.
    """
    order = {node: place for place, node in enumerate(graph.graph.nodes)}
    for node in order:
        if not changes_in_place(graph, node):
            continue
        changed = node.args[0] if node.args else node.kwargs["input"]
        if "in place" in node.meta:
            if rule_of(graph, changed) == "shape" or kinds.get(changed.name) == "no floats":
                continue  # a size, which `+=` doesn't change for others
            if any(rule_of(graph, each) == "move" for each in (changed, *changed.users)):
                node.target = node.meta["in place"]  # so that views of it change, too
        if changed.op == "get_attr" or "state" in changed.meta:
            node.meta["state"] = True
        changed.replace_all_uses_with(node, lambda user, n=node: order[user] > order[n])


def changes_in_place(graph, node):
    if node.op == "call_module":
        return getattr(module_of(graph, node), "inplace", False) is True
    if node.op == "call_method":
        return node.target.endswith("_") and not node.target.endswith("__")
    if node.op != "call_function":
        return False
    if "in place" in node.meta or getattr(node.target, "__name__", "").endswith("_"):
        return True
    try:
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments
    except (TypeError, ValueError):  # torch's own functions have no signature
        return node.kwargs.get("inplace") is True
    return given.get("inplace") is True
