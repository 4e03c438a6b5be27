"""Choose the Microsoft Graph that belongs to an endpoint. Pure."""

from dataclasses import dataclass

from hsm_signer.entra.authority import Endpoint
from hsm_signer.entra.clouds import AUTHORITIES, ENTRA_HOST, GRAPH_OF_DOD, GRAPHS, Cloud
from hsm_signer.entra.url import origin_of, parse_url, with_scheme
from hsm_signer.errors import ConfigError


@dataclass(frozen=True)
class GraphService:
    """Microsoft Graph of one cloud.

    Args:
        origin: scheme and host.
        scope: the scope of tokens for it.
    """

    origin: str
    scope: str


def resolve_graph(endpoint: Endpoint, graph: str | None = None) -> GraphService:
    """Return the Microsoft Graph in which the applications of an authority are registered.

    A token for Graph is valuable, so it is sent only to Microsoft's own hosts, or, if the authority is not Microsoft's,
    to the authority's own host, which issued the token.
    https://learn.microsoft.com/graph/deployments

    Args:
        endpoint: where tokens come from.
        graph: another one of Microsoft's Graph hosts, as the US government's L5 (DoD) needs.

    Raises:
        ConfigError: there is no Graph for this endpoint, or `graph` is not Microsoft's.
    """
    if not endpoint.entra or endpoint.tenant == "adfs":
        raise ConfigError(
            f"Applications of {endpoint.authority} are not registered in Microsoft Graph.",
            hint="Replace the certificate with that server's own tools.",
        )
    if graph is not None:
        origin = origin_of(parse_url(with_scheme(graph), "Graph host"))
        if origin not in (*GRAPHS.values(), GRAPH_OF_DOD, endpoint.authority):
            raise ConfigError(
                f"{origin} is not one of Microsoft Graph's hosts, so it must not receive a token for Graph.",
                hint=f"Set --graph to one of {', '.join((*GRAPHS.values(), GRAPH_OF_DOD))}.",
            )
    else:
        cloud = next((cloud for cloud, authority in AUTHORITIES.items() if authority == endpoint.authority), None)
        known = cloud or (Cloud.PUBLIC if ENTRA_HOST.search(endpoint.authority) else None)
        origin = GRAPHS[known] if known else endpoint.authority
    return GraphService(origin, f"{GRAPHS[Cloud.PUBLIC] if origin == endpoint.authority else origin}/.default")
