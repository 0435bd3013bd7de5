"""Where a graph's numbers become codes: the places, their names, and the modules put there."""

import operator
from dataclasses import dataclass

from torch import fx

from qhelpers.ptq.functions import unused_name
from qhelpers.ptq.rules import CLIPS, COMPUTING, is_one_of, rule_of

CASTS = ("float", "to")  # what they take may be no floats


@dataclass
class Place:
    """A place where numbers become codes.

    node: they do so behind it. name: no other place or layer has it. owner: the layer whose
    options it follows, or its own name.
    """

    node: fx.Node
    name: str
    owner: str


class Plan:
    """What of a graph is quantized.

    layers: the names of the layers whose weights become codes.
    places: a Place for each node behind which numbers become codes, in order.
    kept_in_float: the nodes that compute in floats.
    """

    def __init__(self, graph, kinds):
        """kinds: what the nodes return, as Kinds finds it; floats where nothing is known."""
        self.graph, self.kinds, self.shapes = graph, kinds, set()
        self.shapes.update(n for n in graph.graph.nodes if self.returns_no_numbers(n))
        nodes = [node for node in graph.graph.nodes if node not in self.shapes]
        rules = {node: self.rule(node) for node in nodes}
        weighted = [node.target for node in nodes if rules[node] in ("layer", "weights")]
        self.layers = list(dict.fromkeys(weighted))
        self.kept_in_float = [
            node for node in nodes if rules[node] is None and node.op.startswith("call")
            and not isinstance(node.target, type)  # which only puts values together
        ]  # fmt: skip
        made_by, quantized = {}, set()  # which node made the numbers that a fused one returns
        for node in nodes:
            if rules[node] in COMPUTING and node not in made_by:
                made_by |= dict.fromkeys(self.fused_with(node), node)
                quantized |= {node} | {self.source(taken) for taken in self.taken(node)}
        quantized = {made_by.get(node, node) for node in quantized}
        quantized -= {node for node in quantized if self.shares(self.fused_with(node)[-1])}
        self.places = self.named([node for node in nodes if node in quantized])

    def returns_no_numbers(self, node):
        """Whether a node returns a shape, a mask or the like, or computes with such only."""
        if node.op in ("output", "get_attr"):
            return False
        if node.name in self.kinds:
            return self.kinds[node.name] == "no floats"
        if node.op == "placeholder" or rule_of(self.graph, node) in ("layer", "weights"):
            return False
        return rule_of(self.graph, node) == "shape" or all(
            taken in self.shapes for taken in node.all_input_nodes
        )

    def rule(self, node):
        """Return a node's rule: None, too, if codes can't hold its numbers or it changes state."""
        rule = rule_of(self.graph, node)
        numbers = {self.kinds.get(each.name) for each in (node, *node.all_input_nodes)}
        floats = "only floats" in numbers or "state" in node.meta
        return None if rule in ("new", "join", "share") and floats else rule

    def shares(self, node):
        """Whether a node's numbers only go into one torch.cat or the like, and share its scale."""
        while len(node.users) == 1:
            node = next(iter(node.users))
            rule = None if node in self.shapes else self.rule(node)
            if rule != "move":
                return rule == "share"
        return False

    def taken(self, node):
        """Return the nodes whose numbers an operation takes as codes."""
        found = node.all_input_nodes
        rule = rule_of(self.graph, node)
        if rule == "share":
            return []
        if rule != "join":
            found = [node.args[0] if node.args else node.kwargs["input"]]
        return [taken for taken in found if isinstance(taken, fx.Node) and taken not in self.shapes]

    def source(self, node):
        """Return the node that made these numbers, before others moved them."""
        while rule_of(self.graph, node) == "move" and node.target not in CASTS:
            before = node.all_input_nodes[0]
            alone = node.target is operator.getitem and self.returns_several(before)
            if before in self.shapes or alone:  # one of several values: they have no place
                break
            node = before
        return node

    def returns_several(self, node):
        """Whether a node returns several values, made by an operation that computes in floats."""
        if self.kinds.get(node.name, "several") != "several":
            return False
        while node.target is operator.getitem:
            node = node.all_input_nodes[0]
        return rule_of(self.graph, node) in (None, "shape")

    def fused_with(self, node):
        """Return a node and the ReLU and the like that are fused with it, in order."""
        chain = [node]
        fuses = rule_of(self.graph, node) in ("layer", "norm", "join", "share")
        while fuses and len(chain[-1].users) == 1:
            user = next(iter(chain[-1].users))
            if not is_one_of(self.graph, user, CLIPS):
                break
            chain.append(user)
        return chain

    def named(self, nodes):
        """Return a Place for each node: a layer's has its name, an input's its argument's."""
        modules = {name for name, _ in self.graph.named_modules()}
        inputs = [n for n in self.graph.graph.nodes if n.op == "placeholder"]
        one_input = len([node for node in inputs if node not in self.shapes]) == 1
        places, names = [], set()
        for node in nodes:
            owner = name = node.target if node.op == "call_module" else node.name
            if node.op == "placeholder" and one_input and "input" not in modules:
                owner = name = "input"
            if node.op == "call_module" and name in names:  # another call of the same module
                name = node.name
            while name in names or (node.op != "call_module" and name in modules):
                owner = name = name + "_"
            names.add(name)
            places.append(Place(self.fused_with(node)[-1], name, owner))
        return places


def insert(graph, plan, choices):
    """Put quantized layers and activations where a plan has them."""
    for target in plan.layers:
        graph.set_submodule(target, choices.layer(target, graph.get_submodule(target)))
    for place in plan.places:
        activation = choices.activation(place)
        if activation is None:  # left in floats on purpose
            continue
        target = unused_name(graph, "quantize_" + identifier(place.name))
        graph.add_submodule(target, activation)
        with graph.graph.inserting_after(place.node):
            new = graph.graph.call_module(target, (place.node,))
        place.node.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)


def identifier(name):
    return "".join(c if c.isalnum() else "_" for c in name)
