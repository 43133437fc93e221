"""A small network for each of k variables, all run at once, blind to what a graph leaves out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tegu.errors import check_range


class MaskedMlps(nn.Module):
    """Log-likelihood of each categorical variable given those that a graph calls its parents.

    One hidden layer for each variable, fed with the one-hot categories of all variables;
    what is not a parent is masked to zero. The k networks are stacked in one tensor, and
    the first layer is summed by source variable, so that what each of S rows adds is
    computed once and any number of graphs is one matrix product on it.

    Args:
        variables: k.
        n_categories: N, the same for all.
        hidden: H, width of the hidden layer; 0 for 4 max(k, N), as published.
        seed: of the initial weights: orthogonal, biases uniform within 0.1, as published.

    Reference:
        Ke et al. (2019), arXiv:1910.01075, section 3.1, and its code.

    Example:
        >>> net = MaskedMlps(4, 3)
        >>> net(torch.zeros(5, 4), torch.zeros(2, 4, 4)).shape
        torch.Size([2, 5, 4])
    """

    def __init__(
        self, variables: int, n_categories: int = 3, *, hidden: int = 0, seed: int = 0
    ) -> None:
        super().__init__()
        for name, given, least in (
            ("variables", variables, 2),
            ("n_categories", n_categories, 2),
            ("hidden", hidden, 0),
        ):
            check_range(name, given, least)
        k, n, h = variables, n_categories, hidden or 4 * max(variables, n_categories)
        self.variables, self.n_categories = k, n
        generator = torch.Generator().manual_seed(seed)
        self.inner = nn.Parameter(torch.empty(k, k * n, h))
        self.inner_bias = nn.Parameter(torch.empty(k, h).uniform_(-0.1, 0.1, generator=generator))
        self.outer = nn.Parameter(torch.empty(k, h, n))
        self.outer_bias = nn.Parameter(torch.empty(k, n).uniform_(-0.1, 0.1, generator=generator))
        for stacked in (self.inner, self.outer):
            for weight in stacked:
                nn.init.orthogonal_(weight.detach(), generator=generator)

    def forward(self, x: Tensor, graphs: Tensor) -> Tensor:
        """Log-likelihoods of the rows under each graph.

        Args:
            x: (S, k) categories 0 to N - 1 as floating numbers. A row with anything else
                (padding, say) gets numbers that mean nothing, and harms no other row.
            graphs: (G, k, k); [g, i, j] is 1 where j is a parent of i.

        Returns:
            (G, S, k): of each variable given its parents.
        """
        k, n = self.variables, self.n_categories
        # Rows come last throughout: the last axis is long, that of categories is not.
        seen = (x.T.unsqueeze(1) == torch.arange(n, device=x.device)[:, None]).to(self.inner)
        weight = self.inner.unflatten(1, (k, n)).permute(1, 0, 3, 2).flatten(1, 2)  # (k, k * H, N)
        added = (weight @ seen).unflatten(1, (k, -1)).transpose(0, 1)  # (i, j, H, S)
        bias = self.inner_bias[:, None, :, None].expand_as(added[:, :1])
        added = torch.cat([added, bias], 1).flatten(2)  # the bias is a parent that is always there
        chosen = torch.cat([graphs, torch.ones_like(graphs[..., :1])], -1).transpose(0, 1)
        hidden = (chosen.to(added) @ added).unflatten(-1, (-1, len(x)))  # (i, G, H, S)
        hidden = nn.functional.leaky_relu(hidden, 0.1)
        logits = self.outer.transpose(1, 2).unsqueeze(1) @ hidden  # (i, G, N, S)
        logp = (logits + self.outer_bias[:, None, :, None]).log_softmax(-2)
        return (logp * seen.unsqueeze(1)).sum(-2).permute(1, 2, 0)
